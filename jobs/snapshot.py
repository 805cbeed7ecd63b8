"""A working folder as one file: packed on the laptop, named by its content, unpacked into the run folder.

Knows only the standard library. The same files give the same bytes, so a folder that has not changed is uploaded once.
"""

import gzip
import hashlib
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

#: What is never the code itself, where no git says what belongs to it.
NEVER = frozenset({".git", ".hg", ".svn", "__pycache__", ".venv", "venv", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".ipynb_checkpoints", ".tox"})  # fmt: skip
MAX_FILES = 50_000
#: Of what is unpacked. An upload's own size is bounded by the rig (max_input_bytes).
MAX_UNPACKED_BYTES = 4 * 2**30
GIT_TIMEOUT_S = 60.0
#: Marks a folder as unpacked whole, with the name of the snapshot in it.
STAMP = ".overnight-snapshot"


class BadSnapshot(ValueError):
    """It is no snapshot of a folder, or not one that may be unpacked; the message says why."""


@dataclass(frozen=True)
class Listing:
    """What of a folder goes along."""

    #: Relative names with `/`, sorted.
    names: tuple[str, ...]
    total_bytes: int
    #: Links that lead out of the folder, and what is neither file nor link: left behind.
    left_out: tuple[str, ...]
    #: Whether git said what belongs to it.
    by_git: bool

    def largest(self, folder: Path, count: int = 3) -> list[tuple[str, int]]:
        """The largest files, for who wonders why it is so much."""
        sizes = ((name, (folder / name).lstat().st_size) for name in self.names)
        return sorted(sizes, key=lambda item: -item[1])[:count]


def listing(folder: Path) -> Listing:
    """The files of a folder: what git tracks and what it does not ignore; without git everything but NEVER."""
    tracked = _git_files(folder)
    candidates = _walk(folder) if tracked is None else tracked
    names, left_out, total = [], [], 0
    for name in sorted(set(candidates)):
        try:
            mode = (folder / name).lstat()
        except OSError:  # tracked, and deleted here
            continue
        if stat.S_ISREG(mode.st_mode):
            total += mode.st_size
        elif not stat.S_ISLNK(mode.st_mode) or not _stays_inside(name, str((folder / name).readlink())):
            left_out.append(name)
            continue
        names.append(name)
    return Listing(tuple(names), total, tuple(left_out), by_git=tracked is not None)


def pack(folder: Path, names: tuple[str, ...], target: BinaryIO) -> None:
    """Write these files as a compressed archive, without times and owners: they are not the code."""
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=target, mtime=0) as squeezed,
        tarfile.open(fileobj=squeezed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in names:
            path = folder / name
            entry = tarfile.TarInfo(name)
            if path.is_symlink():
                entry.type, entry.linkname = tarfile.SYMTYPE, str(path.readlink())
                archive.addfile(entry)
                continue
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                entry.size = found.st_size
                entry.mode = 0o755 if found.st_mode & stat.S_IXUSR else 0o644
                archive.addfile(entry, file)


def contents(path: Path) -> frozenset[str]:
    """The names in an archive. Raises BadSnapshot when it must not be unpacked."""
    with _reading(path) as archive:
        return frozenset(member.name for member in _members(archive))


def digests(path: Path) -> dict[str, str]:
    """What each file and link in an archive is, by name: equal ones are the same. Raises BadSnapshot."""
    found = {}
    with _reading(path) as archive:
        for member in _members(archive):
            if member.issym():
                found[member.name] = f"-> {member.linkname}"
            elif member.isreg() and (source := archive.extractfile(member)) is not None:
                runs = "x " if member.mode & stat.S_IXUSR else ""
                found[member.name] = runs + hashlib.file_digest(source, "sha256").hexdigest()  # type: ignore[arg-type]
    return found


def read(path: Path, names: Collection[str], most_bytes: int) -> dict[str, bytes]:
    """The contents of these files of an archive, without those that are larger. Raises BadSnapshot."""
    found = {}
    with _reading(path) as archive:
        for member in _members(archive):
            if member.name in names and member.isreg() and member.size <= most_bytes:
                source = archive.extractfile(member)
                found[member.name] = source.read() if source is not None else b""
    return found


def unpack(path: Path, folder: Path, *, name: str) -> None:
    """Put the archive's files into this folder, whole or not at all. Does nothing when it is there already.

    What a script has written beside its code stays there from one attempt to the next.
    """
    if (folder / STAMP).is_file():
        return
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    links = []
    with _reading(path) as archive:
        for member in _members(archive):
            place = draft / member.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if member.issym():
                links.append((place, member.linkname))  # last, so that nothing is written through one
            elif member.isdir():
                place.mkdir(exist_ok=True)
            else:
                _write(archive, member, place)
    for place, target in links:
        place.symlink_to(target)
    for place, _ in links:
        if not place.resolve().is_relative_to(draft.resolve()):
            raise BadSnapshot(f"its link {place.name} leads out of it")
    (draft / STAMP).write_text(f"{name}\n")
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
    source = archive.extractfile(member)
    if source is None:
        raise BadSnapshot(f"{member.name} has no content")
    with source, place.open("xb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    place.chmod(0o755 if member.mode & stat.S_IXUSR else 0o644)


def _reading(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, mode="r:gz")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BadSnapshot(f"is no snapshot of a folder (a .tar.gz): {error}") from None


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Every entry, when all of them are harmless: tarfile's own filter has let names escape (CVE-2025-4517)."""
    count = total = 0
    try:
        for member in archive:
            count, total = count + 1, total + member.size
            if count > MAX_FILES or total > MAX_UNPACKED_BYTES:
                raise BadSnapshot(f"holds more than {MAX_FILES} files or {MAX_UNPACKED_BYTES / 2**30:.0f} GiB")
            parts = PurePosixPath(member.name).parts
            if not parts or member.name.startswith("/") or ".." in parts or parts[0] == STAMP:
                raise BadSnapshot(f"names a file outside of itself: {member.name[:80]!r}")
            if not (
                member.isreg() or member.isdir() or (member.issym() and _stays_inside(member.name, member.linkname))
            ):
                raise BadSnapshot(f"{member.name[:80]!r} is neither a file nor a link inside of it")
            yield member
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BadSnapshot(f"is damaged: {error}") from None


def _stays_inside(name: str, target: str) -> bool:
    """Whether a link of this name leads to somewhere below the folder, by its words alone."""
    if target.startswith("/"):
        return False
    parts = PurePosixPath(os.path.normpath(PurePosixPath(name).parent / target)).parts
    return parts[:1] != ("..",)


def _git_files(folder: Path) -> list[str] | None:
    """Tracked, and untracked but not ignored; None where git does not know the folder."""
    argv = ["git", "-c", "core.fsmonitor=false", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=GIT_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name and not name.endswith(b"/")]


def _walk(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        here = Path(root)
        linked = [name for name in folders if (here / name).is_symlink()]
        folders[:] = sorted(set(folders) - set(linked) - NEVER)
        yield from (str((here / name).relative_to(folder)) for name in (*files, *linked) if name not in NEVER)
