"""The rig's secrets, by name. Their values go into the environment of jobs that were given them, and nowhere else."""

import os
import tomllib
from pathlib import Path

from daemon.places import Refused


def read_secrets(path: Path) -> dict[str, str]:
    """The rig's secrets by name. Raises Refused when the file is readable by others or not a table of texts."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise Refused(f"{path.name} on the rig can be read by others: run `chmod 600` on it")
            table = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        # without the parser's words: they would quote what stands there
        raise Refused(f'{path.name} on the rig is not valid TOML with lines like NAME = "value"') from None
    if wrong := [name for name, value in table.items() if not isinstance(value, str)]:
        raise Refused(f"{path.name} on the rig: {wrong[0]} is not a text in quotes")
    return table
