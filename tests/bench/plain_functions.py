"""What plain RQ's workers run. Imports nothing heavy."""

import subprocess
import time
from pathlib import Path


def mark(path: str) -> None:
    """The first line of a function: note when it ran."""
    now = time.time()
    with Path(path).open("a") as file:
        file.write(f"{now}\n")


def mark_twice(path: str, pause_s: float) -> None:
    """Note when it began and when it was about to end."""
    mark(path)
    time.sleep(pause_s)
    mark(path)


def program(argv: list[str]) -> None:
    """Run a program to its end."""
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
