"""Where experiments find data that do not come with a package."""

from __future__ import annotations

import os
from pathlib import Path

from niwaki.run.folder import RunError


def shared_data(*parts: str) -> Path:
    """The file or folder `data/<parts>` of the shared folder: NIWAKI_SHARED, or `../shared` beside the working directory."""
    root = Path(os.environ.get("NIWAKI_SHARED", "../shared"))
    path = root.joinpath("data", *parts)
    if not path.exists():
        raise RunError(f"there is no {path}; NIWAKI_SHARED names the folder above `data` (now {root})")
    return path
