"""The disk that a rig's home lies on, with a plug to pull.

As root it is an ext4 image on a loop device. A power cut freezes the rig and copies the *image*: the copy holds what had
reached the "disk", and nothing that only sat in the page cache. Not simulated: a drive that acknowledges a flush and loses
it; and writeback may go on during the copy (some 10 ms). Elsewhere a plain folder, which is copied as it stands.
"""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

IMAGE_BYTES = 768 << 20
#: Late commits of the journal make a cut lose more.
MOUNT_OPTIONS = "loop,commit=60"
UNMOUNT_TRIES = 100


class PlainDisk:
    """A folder. Its power cut loses nothing that was written, synced or not."""

    kind = "a copy of the folder at that instant (not root, or no loop device: unsynced writes are kept)"
    can_fill = False

    def __init__(self, folder: Path):
        self._folder = folder
        self.home = folder / "h"
        self.home.mkdir()

    def copy(self) -> None:
        """Remember the folder as it is at this moment; everything on it must be frozen."""
        subprocess.run(["cp", "-a", self.home, self._folder / "after"], check=True)

    def cut(self) -> None:
        """The folder is again as it was copied; everything on it must be dead."""
        shutil.rmtree(self.home)
        (self._folder / "after").rename(self.home)

    def fill(self, *, leave_bytes: int) -> None:
        raise NotImplementedError("a plain folder lies on everybody's disk")

    def empty(self) -> None:
        """Nothing was filled."""

    def close(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)


class LoopDisk:
    """An ext4 image on a loop device."""

    kind = "unsynced writes lost (ext4 image on a loop device, copied while everything was frozen)"
    can_fill = True

    def __init__(self, folder: Path):
        self._image, self._after, self._point = folder / "disk", folder / "disk-after", folder / "d"
        self._point.mkdir()
        with self._image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        _run("mkfs.ext4", "-q", "-F", str(self._image))
        self._mount()
        self.home = self._point / "h"
        self.home.mkdir()
        self._ballast = self._point / "ballast"

    def copy(self) -> None:
        """Remember what had reached the disk at this moment; everything on it must be frozen."""
        _run("cp", "--sparse=always", str(self._image), str(self._after))

    def cut(self) -> None:
        """The disk is again as it was copied; everything on it must be dead."""
        self._unmount()
        self._after.replace(self._image)
        self._mount()

    def fill(self, *, leave_bytes: int) -> None:
        """Leave only so much for everybody but root."""
        free = shutil.disk_usage(self._point).free
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free - leave_bytes))

    def empty(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        self._unmount()
        self._image.unlink(missing_ok=True)
        self._after.unlink(missing_ok=True)

    def _mount(self) -> None:
        _run("mount", "-o", MOUNT_OPTIONS, str(self._image), str(self._point))

    def _unmount(self) -> None:
        for _ in range(UNMOUNT_TRIES):
            if subprocess.run(["umount", str(self._point)], capture_output=True).returncode == 0:
                return
            time.sleep(0.05)  # a process that was just killed still closes its files
        _run("umount", "--lazy", str(self._point))


Disk = PlainDisk | LoopDisk


def make_disk(folder: Path) -> Disk:
    """A loop-mounted disk where that is possible, else a plain folder."""
    if os.geteuid() == 0 and shutil.which("mkfs.ext4") and _can_mount():
        return LoopDisk(folder)
    return PlainDisk(folder)


def _can_mount() -> bool:
    """Whether this machine lets us mount an image (containers seldom do)."""
    with tempfile.TemporaryDirectory() as folder:
        image, point = Path(folder) / "i", Path(folder) / "p"
        point.mkdir()
        with image.open("wb") as file:
            file.truncate(8 << 20)
        try:
            _run("mkfs.ext4", "-q", "-F", str(image))
            _run("mount", "-o", "loop", str(image), str(point))
        except subprocess.CalledProcessError:
            return False
        _run("umount", str(point))
        return True


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)
