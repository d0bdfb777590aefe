"""The report of a run: `Record` is what it shows, `render` makes it one self-contained page."""

from niwaki.report.page import render
from niwaki.report.record import Record, wilson_interval

__all__ = ["Record", "render", "wilson_interval"]
