"""Working folders that go along with a command: found, packed once each, put into the document as a file to upload.

Loads pydantic (through documents), so only a command that submits imports this.
"""

import os
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from api.cli import output
from api.cli.documents import members
from api.cli.fields import DocumentError
from api.cli.session import Session
from jobs import snapshot
from jobs.spec import INPUT_REFERENCE

Json = dict[str, Any]

#: Code is small; what is larger is data, and data belongs on the rig or into `data`.
MAX_MB = 200
MAX_MB_VARIABLE = "OVERNIGHT_WORKDIR_MAX_MB"


def suggested(argv: Sequence[str], here: Path) -> str | None:
    """The folder that a command obviously needs: one whose files it names. Raises DocumentError for the home folder.

    `nvidia-smi` and `/opt/bench.sh` need none; `python train.py`, `python -m mine.train` and `./run.sh` need this one.
    """
    named = next((word for word in argv if _is_here(word, here)), None)
    named = named or next((module for module in _modules(argv) if _is_module(module, here)), None)
    if named is None:
        return None
    if here.resolve() in (Path.home().resolve(), Path(here.anchor)):
        raise DocumentError(
            f"workdir: {named} lies in {here.resolve()}, which does not go to the rig as a whole. "
            "Put it into a folder of its own, or say --workdir DIR (or --no-workdir)."
        )
    return "."


def _is_here(word: str, here: Path) -> bool:
    return not word.startswith(("-", "/")) and ".." not in PurePosixPath(word).parts and (here / word).is_file()


def _modules(argv: Sequence[str]) -> list[str]:
    return [name for flag, name in pairwise(argv) if flag == "-m"]


def _is_module(name: str, here: Path) -> bool:
    path = here.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


@contextmanager
def packed(session: Session, body: Json, folders: Sequence[Path]) -> Iterator[None]:
    """While inside, every `workdir` that names a folder names its packed form instead. Raises DocumentError."""
    done: dict[Path, Path] = {}
    with tempfile.TemporaryDirectory(prefix="overnight-") as scratch:
        for document in members(body):
            text = document.get("workdir")
            if not isinstance(text, str) or INPUT_REFERENCE.fullmatch(text):
                continue
            folder = _folder(text, folders)
            if folder not in done:
                done[folder] = _pack(session, folder, Path(scratch) / f"{len(done)}-{folder.name}.tar.gz")
            document["workdir"] = str(done[folder])
        yield


def _folder(text: str, folders: Sequence[Path]) -> Path:
    """Relative names count from the document's folder, then from the current one."""
    there = [path.resolve() for folder in folders if (path := folder / Path(text).expanduser()).is_dir()]
    if not there:
        raise DocumentError(
            f"workdir: {text!r} is not a folder of this machine. One that is on the rig is named by cwd."
        )
    return there[0]


def _pack(session: Session, folder: Path, target: Path) -> Path:
    found = snapshot.listing(folder)
    if not found.names:
        raise DocumentError(
            f"workdir: {folder} has no files to send" + (" that git does not ignore" if found.by_git else "")
        )
    limit_mb = _limit_mb()
    if found.total_bytes > limit_mb * 1_000_000 or len(found.names) > snapshot.MAX_FILES:
        largest = ", ".join(f"{name} ({output.size(size)})" for name, size in found.largest(folder))
        by = "list them in .gitignore" if found.by_git else "make it a git repository and list them in .gitignore"
        raise DocumentError(
            f"workdir: {folder} has {len(found.names)} files, {output.size(found.total_bytes)}; {limit_mb} MB go along at most. "
            f"The largest: {output.clean_line(largest)}. Keep data elsewhere ({by}), or set {MAX_MB_VARIABLE}."
        )
    with target.open("wb") as file:
        snapshot.pack(folder, found.names, file)
    count = f"{len(found.names)} file{'s' if len(found.names) > 1 else ''}"
    whose = "what git tracks or does not ignore" if found.by_git else "everything in it"
    session.say(output.clean_line(f"With {folder}: {count}, {output.size(found.total_bytes)} ({whose})."))
    if found.left_out:
        names = ", ".join(map(shlex.quote, found.left_out[:5])) + (", …" if len(found.left_out) > 5 else "")
        session.say(output.clean_line(f"Left here, because they lead out of the folder: {names}"))
    return target


def _limit_mb() -> int:
    text = os.environ.get(MAX_MB_VARIABLE, "")
    return int(text) if text.isdigit() else MAX_MB
