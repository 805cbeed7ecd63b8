"""Uploads by content, brought here from the rig that has them: verified by their hash, kept once, whole or not at all."""

import errno
import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from daemon import peers
from daemon.peers import Peer
from daemon.settings import Settings
from daemon.store import Store
from jobs.rundir import sync_folder

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

DIGEST = re.compile(r"[0-9a-f]{64}")
DRAFT_PREFIX = ".fetch-"
CHUNK_BYTES = 1 << 20
CONNECT_S, SILENCE_S = 5.0, 30.0
#: A transfer that breaks goes on where it stopped; after so many breaks in a row without a byte another rig is asked.
FRUITLESS_TRIES = 3
PAUSE_S = 0.3
OLD_DRAFT_S = 7 * 86_400

#: Called between parts with the bytes so far and in all (0: unknown); what it raises ends the transfer.
Tell = Callable[[int, int], None]


class InputAway(Exception):
    """No rig that can be reached has the file; the message says who was asked."""


class NotThere(Exception):
    """This rig cannot give it; the message says why."""


def uploaded(folder: Path) -> list[str]:
    """The uploads that lie here. Drafts of transfers that nobody went on with are removed."""
    if not folder.is_dir():
        return []
    for draft in folder.glob(f"{DRAFT_PREFIX}*"):
        if time.time() - draft.stat().st_mtime > OLD_DRAFT_S:
            draft.unlink(missing_ok=True)
    return [entry.name for entry in folder.iterdir() if DIGEST.fullmatch(entry.name)]


def bring(store: Store, settings: Settings, digest: str, *, tell: Tell, now: Callable[[], float] = time.time) -> None:
    """Return when the file is here. Raises InputAway, OSError, and what `tell` raises; what came so far is kept."""
    target = settings.inputs / digest
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _draft(target, tell) as draft:
        if draft is None:
            return
        asked: list[str] = []
        key = peers.key_of(store)
        for peer in _who_has(store, settings, digest):
            try:
                _copy(draft, peer, key, digest, settings.max_input_bytes, tell, now)
            except NotThere as error:
                asked.append(f"{peer.rig} ({error})")
                store.drop_input(peer.rig, digest)
                continue
            draft.keep_as(target)
            store.add_inputs(settings.rig, [digest])
            return
    raise InputAway(f"sha256:{digest[:12]}… could not be fetched; asked: {', '.join(asked) or 'nobody, no rig is up'}")


class Draft:
    """A file that is still coming. One process writes it."""

    def __init__(self, path: Path, descriptor: int):
        self.path, self._file = path, descriptor

    @property
    def size_bytes(self) -> int:
        return os.fstat(self._file).st_size

    def is_current(self) -> bool:
        """Whether the path still leads to this file: another writer may have finished or removed it."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def begin_anew(self) -> None:
        os.ftruncate(self._file, 0)

    def add(self, chunk: bytes) -> None:
        """Append."""
        end, view = self.size_bytes, memoryview(chunk)
        while view:
            written = os.pwrite(self._file, view, end)
            end, view = end + written, view[written:]

    def digest(self) -> str:
        found, read = hashlib.sha256(), 0
        while chunk := os.pread(self._file, CHUNK_BYTES, read):
            found.update(chunk)
            read += len(chunk)
        return found.hexdigest()

    def keep_as(self, target: Path) -> None:
        """It is whole: give it its name, for good."""
        os.fsync(self._file)
        self.path.replace(target)
        sync_folder(target.parent)


@contextmanager
def _draft(target: Path, tell: Tell) -> Iterator[Draft | None]:
    """The draft, with nobody else writing it; None when the file is here, because another slot has brought it, say."""
    path = target.with_name(f"{DRAFT_PREFIX}{target.name}")
    while not target.is_file():
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft = Draft(path, descriptor)
            if draft.is_current() and not target.is_file():
                yield draft
                return
        except BlockingIOError:
            tell(0, 0)
            time.sleep(PAUSE_S)
        finally:
            os.close(descriptor)
    yield None


def _who_has(store: Store, settings: Settings, digest: str) -> list[Peer]:
    """Rigs that live: those that are said to have it first; the others may have it all the same."""
    living = peers.living_peers(store, settings)
    said = store.rigs_with_input(digest, living)
    return [living[rig] for rig in (*said, *(rig for rig in living if rig not in said)) if living[rig].url]


def _copy(
    draft: Draft, peer: Peer, key: bytes, digest: str, limit_bytes: int, tell: Tell, now: Callable[[], float]
) -> None:
    """The file from this rig into the draft, from where the draft ends. Raises NotThere."""
    import httpx  # here: a worker that never fetches need not load it

    fruitless = 0
    timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
    with httpx.Client(base_url=peer.url, verify=peers.tls(), timeout=timeout, trust_env=False) as client:
        while True:
            before = draft.size_bytes
            target = f"/api/v1/inputs/{digest}"
            headers = peers.sign(key, to=peer.rig, method="GET", target=target, now=now())
            try:
                with client.stream("GET", target, headers={**headers, "Range": f"bytes={before}-"}) as answer:
                    _receive(answer, draft, limit_bytes, tell)
                break
            except httpx.HTTPError as error:
                fruitless = 0 if draft.size_bytes > before else fruitless + 1
                log.info("the transfer of %s from rig %s broke: %s", digest[:12], peer.rig, error)
                if fruitless == FRUITLESS_TRIES:
                    raise NotThere(f"does not answer at {peer.url}") from None
                tell(before, 0)
                time.sleep(PAUSE_S)
    if draft.digest() != digest:
        draft.begin_anew()
        raise NotThere("its copy is damaged")


def _receive(answer: "httpx.Response", draft: Draft, limit_bytes: int, tell: Tell) -> None:
    match answer.status_code:
        case 416:
            return  # the draft has all of it
        case 404:
            raise NotThere("has it no longer")
        case 200:
            draft.begin_anew()  # it does not know Range
        case 206:
            pass
        case status:
            raise NotThere(f"answers with status {status}")
    total = draft.size_bytes + int(answer.headers.get("Content-Length", 0))
    for chunk in answer.iter_raw(CHUNK_BYTES):
        if draft.size_bytes + len(chunk) > limit_bytes:
            draft.begin_anew()
            raise OSError(errno.EFBIG, f"it is larger than max_input_bytes of this rig ({limit_bytes})")
        draft.add(chunk)
        tell(draft.size_bytes, total)
