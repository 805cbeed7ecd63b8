"""Which Python a command runs in: the one of its own folder, uv's, or the rig's."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

#: A command that begins with one of these runs in the Python that its document chooses.
PYTHON_NAMES = ("python", "python3")
LOCK = "uv.lock"
OWN = ".venv/bin/python"


def chosen(argv: Sequence[str], python: str, folder: Path) -> list[str]:
    """The command with its Python in place. `python`: auto, uv, rig or a path, as in the document."""
    if argv[0] not in PYTHON_NAMES:
        return list(argv)
    if wants_uv(python, locked=(folder / LOCK).is_file()):
        # --frozen: what the lock says, never a newer one
        return ["uv", "run", "--frozen", *argv]
    return [_binary(argv[0], python, folder), *argv[1:]]


def wants_uv(python: str, *, locked: bool) -> bool:
    """Whether `python` means uv's, in a folder with or without a lock file."""
    return python == "uv" or (python == "auto" and locked)


def _binary(name: str, python: str, folder: Path) -> str:
    if python == "rig":
        return sys.executable
    if python != "auto":
        return python
    if (folder / OWN).exists():
        return str(folder / OWN)
    return name if shutil.which(name) else sys.executable
