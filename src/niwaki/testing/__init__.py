"""What a user's own parts are tested with: contract suites, toy problems, and the list of primitives that every reader must know."""

from niwaki.testing.adoption import check_adoption
from niwaki.testing.primitives import BLOCKS, PRIMITIVES
from niwaki.testing.store import check_store
from niwaki.testing.strategy import check_strategy

__all__ = ["BLOCKS", "PRIMITIVES", "check_adoption", "check_store", "check_strategy"]
