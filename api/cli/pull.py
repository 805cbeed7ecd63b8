"""`overnight pull`: a job's files onto this machine. What the rig names can land nowhere but below the chosen folder."""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import click

from api.cli import output
from api.cli.session import FAILED, NOT_FOUND, Session, fail, with_rig

#: Not fetched unless asked for: a resumed job needs them, its reader does not, and they are the largest by far.
LEFT_OUT = "checkpoints"
#: Control characters and backslashes everywhere; on Windows a colon, too, leads elsewhere.
UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]" if os.name == "posix" else r"[\x00-\x1f\x7f\\:]")


class UnsafePath(Exception):
    """The rig names a file that would land outside the folder."""


@click.command("pull")
@click.argument("job")
@click.argument("path", required=False)
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path), help="Folder to put them into. [default: job-ID]"
)
@click.option("--all", "everything", is_flag=True, help="The checkpoints too.")
@with_rig
def pull(session: Session, job: str, path: str | None, folder: Path | None, everything: bool) -> None:
    """Fetch a job's files: results, log, metrics. PATH: one file or folder of the run folder, as output/adapter."""
    job_id = session.job_id(job)
    listing = session.client.files(job_id)
    if listing.get("truncated"):
        output.say(f"The rig lists {len(listing['files'])} files only; /api/v1/jobs/{job_id}/archive has all of them.")
    files = _chosen(listing["files"], path, everything)
    if not files:
        fail(f"Job {job_id} has no file {path!r}." if path else f"Job {job_id} has no files yet.", NOT_FOUND)
    root = folder or Path(f"job-{job_id}")
    try:
        targets = [(file, target_of(root, str(file["path"]))) for file in files]
    except UnsafePath as error:
        fail(f"Nothing was fetched: {error}", FAILED)
    for file, target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        session.client.download(job_id, file["path"], target)
        if not session.as_json:
            output.say(f"{target} ({output.size(target.stat().st_size)})", err=False)
    if session.as_json:
        output.emit({"folder": str(root), "files": [str(target) for _, target in targets]})


def target_of(root: Path, name: str) -> Path:
    """Where a file of this name belongs below `root`. Raises UnsafePath for whatever would leave it."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or UNSAFE.search(name) or any(part in ("..", ".") for part in name.split("/")):
        raise UnsafePath(f"the rig named a file {name!r}, which has no place below {root}")
    target = root.joinpath(*parts)
    # a link that lies in the folder already could lead out of it
    if not target.resolve().is_relative_to(root.resolve()):
        raise UnsafePath(f"{target} leads out of {root} through a link")
    return target


def _chosen(files: Sequence[dict[str, Any]], path: str | None, everything: bool) -> list[dict[str, Any]]:
    if path:
        wanted = path.strip("/")
        return [file for file in files if file["path"] == wanted or str(file["path"]).startswith(wanted + "/")]
    return [file for file in files if everything or not str(file["path"]).startswith(LEFT_OUT + "/")]
