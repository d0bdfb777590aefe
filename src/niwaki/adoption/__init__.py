"""A user's own PyTorch model: which of its channels change together, what they cost, and the plain model without some of them."""

from niwaki.adoption.adopted import Adopted, Gate, read
from niwaki.adoption.axes import AdoptionError, Axis, Group, Run, Size, Term
from niwaki.adoption.describe import adopt, describe, eighths
from niwaki.adoption.gates import gated

__all__ = ["Adopted", "AdoptionError", "Axis", "Gate", "Group", "Run", "Size", "Term", "adopt", "describe", "eighths", "gated", "read"]
