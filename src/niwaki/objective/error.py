"""What goes wrong with objectives."""


class ObjectiveError(ValueError):
    """Objectives that cannot be, or that the trials cannot answer."""
