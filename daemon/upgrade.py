"""Was the driver replaced while it was in use? Package managers do that at night.

Whoever has loaded the library goes on with the old one, running jobs too, and notices nothing; every *new* CUDA process
fails until a reboot. So a library file that was exchanged under us is a reason to ask, and a new process is who is asked.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from daemon.gpus import Inventory, discover

MAPS = Path("/proc/self/maps")
LIBRARY = "libnvidia-ml.so"
DELETED = " (deleted)"


def library_exchanged(maps: Path = MAPS) -> bool:
    """Whether the driver's library on the disk is another one than what this process runs."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return False
    paths = {line.partition("/")[1] + line.partition("/")[2] for line in lines if LIBRARY in line}
    return any(path.endswith(DELETED) for path in paths) or any(_points_elsewhere(Path(path)) for path in paths)


class UpgradeWatch(threading.Thread):
    """Looks now and then, and knows in `replaced` whether new processes are refused."""

    def __init__(self, every_s: float, ask: Callable[[], Inventory] = discover) -> None:
        super().__init__(name="upgrade-watch", daemon=True)
        self.replaced = False
        self._every_s, self._ask = every_s, ask
        self._ended = threading.Event()

    def end(self) -> None:
        """It dies with the process."""
        self._ended.set()

    def run(self) -> None:
        while not self._ended.wait(self._every_s):
            self.replaced = library_exchanged() and self._ask().replaced


def _points_elsewhere(path: Path) -> bool:
    """A package leaves the old file for a while and turns the link to the new one."""
    link = path.with_name(f"{LIBRARY}.1")
    return not path.name.endswith(DELETED) and link.exists() and path.exists() and not link.samefile(path)
