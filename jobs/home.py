"""Where a rig keeps its things. Light: the daemon's settings and the laptop's commands both read it."""

import os
import platform
from pathlib import Path


def default_home() -> Path:
    """The platform's data folder for one user."""
    if platform.system() == "Darwin":
        return Path.home() / "Library/Application Support/overnight"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "overnight"
