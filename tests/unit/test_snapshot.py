"""A working folder as one file: what goes along, what stays, and what is never unpacked."""

import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import snapshot


def project(path: Path) -> Path:
    """A folder with code, data that git ignores, and a link out of it."""
    folder = path / "project"
    (folder / "lib").mkdir(parents=True)
    (folder / "train.py").write_text("import lib.model\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "lib" / "model.py").write_text("layers = 2\n")
    (folder / "weights.bin").write_bytes(b"\0" * 1000)
    (folder / ".gitignore").write_text("*.bin\n")
    (folder / "elsewhere").symlink_to("/etc")
    (folder / "model.py").symlink_to("lib/model.py")
    return folder


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=folder, check=True, capture_output=True)  # fmt: skip


def packed(folder: Path, target: Path) -> Path:
    with target.open("wb") as file:
        snapshot.pack(folder, snapshot.listing(folder).names, file)
    return target


def test_git_says_what_goes_along(tmp_path: Path) -> None:
    folder = project(tmp_path)
    git(folder, "init", "-q")
    git(folder, "add", "train.py")
    found = snapshot.listing(folder)
    assert found.by_git
    assert found.names == (".gitignore", "lib/model.py", "model.py", "run.sh", "train.py")  # untracked ones, too
    assert found.left_out == ("elsewhere",)


def test_without_git_everything_but_caches_goes_along(tmp_path: Path) -> None:
    folder = project(tmp_path)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "train.pyc").write_text("")
    found = snapshot.listing(folder)
    assert not found.by_git
    assert "weights.bin" in found.names and not any("pycache" in name for name in found.names)
    assert found.largest(folder, 1) == [("weights.bin", 1000)]


def test_a_tracked_file_that_was_deleted_stays_away(tmp_path: Path) -> None:
    folder = project(tmp_path)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    (folder / "train.py").unlink()
    assert "train.py" not in snapshot.listing(folder).names


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    folder = project(tmp_path)
    first = packed(folder, tmp_path / "a").read_bytes()
    (folder / "train.py").touch()
    assert packed(folder, tmp_path / "b").read_bytes() == first


def test_what_was_packed_is_there_again(tmp_path: Path) -> None:
    archive = packed(project(tmp_path), tmp_path / "a")
    code = tmp_path / "code"
    snapshot.unpack(archive, code, name="sha256:1")
    assert (code / "train.py").read_text() == "import lib.model\n"
    assert (code / "model.py").read_text() == "layers = 2\n" and (code / "model.py").is_symlink()
    assert (code / "run.sh").stat().st_mode & 0o777 == 0o755 and (code / "train.py").stat().st_mode & 0o777 == 0o644


def test_the_next_attempt_finds_what_the_last_one_left(tmp_path: Path) -> None:
    archive = packed(project(tmp_path), tmp_path / "a")
    code = tmp_path / "code"
    snapshot.unpack(archive, code, name="sha256:1")
    (code / "state.pt").write_text("step 7")
    snapshot.unpack(archive, code, name="sha256:1")
    assert (code / "state.pt").read_text() == "step 7"


def test_an_unpacking_that_was_killed_is_begun_anew(tmp_path: Path) -> None:
    archive = packed(project(tmp_path), tmp_path / "a")
    code = tmp_path / "code"
    code.mkdir()
    (code / "half.py").write_text("hal")
    snapshot.unpack(archive, code, name="sha256:1")
    assert not (code / "half.py").exists() and (code / "train.py").exists()


def evil(change: Callable[[tarfile.TarInfo], None]) -> bytes:
    entry = tarfile.TarInfo("a.py")
    change(entry)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        archive.addfile(entry, io.BytesIO(b""))
    return raw.getvalue()


def named(name: str) -> Callable[[tarfile.TarInfo], None]:
    return lambda entry: setattr(entry, "name", name)


def link(to: str, kind: bytes = tarfile.SYMTYPE) -> Callable[[tarfile.TarInfo], None]:
    def change(entry: tarfile.TarInfo) -> None:
        entry.type, entry.linkname = kind, to

    return change


@pytest.mark.parametrize(
    "raw",
    [
        evil(named("../up.py")),
        evil(named("/etc/cron.d/x")),
        evil(named("a/../../b")),
        evil(named(snapshot.STAMP)),
        evil(link("/etc/passwd")),
        evil(link("../../x")),
        evil(link("b", tarfile.LNKTYPE)),
        evil(link("", tarfile.FIFOTYPE)),
        evil(link("", tarfile.CHRTYPE)),
        b"no archive at all",
        evil(named("a.py"))[:40],
    ],
    ids=["up", "absolute", "dots", "stamp", "link-out", "link-up", "hard-link", "pipe", "device", "text", "cut-off"],
)
def test_nothing_is_unpacked_from_an_archive_that_means_harm(tmp_path: Path, raw: bytes) -> None:
    archive = tmp_path / "a"
    archive.write_bytes(raw)
    with pytest.raises(snapshot.BadSnapshot):
        snapshot.contents(archive)
    with pytest.raises(snapshot.BadSnapshot):
        snapshot.unpack(archive, tmp_path / "code", name="x")
    assert not (tmp_path / "code").exists()


def test_links_that_lead_out_together_are_refused(tmp_path: Path) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, target in (("x/y/to", "../../z"), ("z/out", "../x/y/to/../..")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    (tmp_path / "a").write_bytes(raw.getvalue())
    with pytest.raises(snapshot.BadSnapshot, match="leads out"):
        snapshot.unpack(tmp_path / "a", tmp_path / "code", name="x")
