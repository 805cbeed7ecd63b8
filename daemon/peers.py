"""The rigs of one queue: how one joins, who lives, where the others are reached, and how a call between them is signed.

Rigs that share a Redis trust each other: whoever writes to it can start programs on all of them. So the key that signs
their calls lies there, too, and nobody copies tokens. It opens only what rigs need of each other (`MAY_ASK`), for a minute.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import socket
import ssl
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from daemon.settings import Settings
from daemon.store import BEAT_TTL_S, Store, mailbox
from jobs.model import RECORD_VERSION, Job
from jobs.rundir import sync_folder

SCHEME = "Overnight-Rig"
SIGNED_FOR_S = 60
SIGNATURE = re.compile(SCHEME + r" ([0-9]{1,12}) ([0-9a-f]{64})", re.ASCII)
#: What a rig may ask of another one, as `METHOD path?query`.
MAY_ASK = re.compile(
    r"(GET|HEAD) /api/v1/jobs/[0-9]{1,18}/(log|metrics|telemetry|files|files/[^?]*|archive|events)(\?.*)?"
    r"|(GET|HEAD) /api/v1/inputs/[0-9a-f]{64}"
    r"|DELETE /api/v1/jobs/[0-9]{1,18}"
    r"|POST /api/v1/jobs\?dry_run=true",
    re.ASCII,
)
#: Not an address that others could use: "every address of this machine".
ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on


class CannotJoin(Exception):
    """This rig must not take part in this queue; the message says why and what to do."""


@dataclass(frozen=True)
class Peer:
    """Another rig that lives."""

    rig: str
    #: Where its API is, or "" while it has not said so.
    url: str


def join(store: Store, settings: Settings) -> None:
    """Take part in the queue, before anything in it is touched. Raises CannotJoin."""
    living = store.beats(rig for rig, record in store.rigs().items() if not is_stopped(record))
    _refuse_other_records(store, {rig: beat for rig, beat in living.items() if rig != settings.rig})
    _refuse_used_name(store, settings, living.get(settings.rig))
    _refuse_other_queue(store, settings)


def identity(settings: Settings) -> str:
    """What tells this home from every other one: random, made once."""
    return _kept(settings.home / "rig-id", uuid.uuid4().hex)


def leave(store: Store, settings: Settings, *, now: float) -> None:
    """Say that this rig was stopped in order: jobs that have begun here wait for it."""
    record = store.rigs().get(settings.rig, {})
    store.describe_rig(settings.rig, {**record, "stopped_at": now})


def address(settings: Settings) -> str:
    """Where other rigs reach this one's API; "" until it listens."""
    if settings.public_url:
        return settings.public_url.rstrip("/")
    try:
        told = json.loads((settings.home / "api.json").read_text())
    except (OSError, ValueError):
        return ""
    if told["host"] in ANY_ADDRESS:
        return f"http://{socket.gethostname()}:{told['port']}"
    return str(told["url"])


def living_peers(store: Store, settings: Settings) -> dict[str, Peer]:
    """The other rigs that live: neither stopped nor silent."""
    if settings.redis_url is None:
        return {}
    silences, limit_s = store.silences(), silent_after_s(settings)
    records = {rig: record for rig, record in store.rigs().items() if rig != settings.rig}
    beats = store.beats(
        rig for rig, record in records.items() if not is_stopped(record) and silences.get(rig, limit_s) < limit_s
    )
    return {rig: Peer(rig, str(beat.get("url") or "")) for rig, beat in beats.items()}


def is_stopped(record: Mapping[str, Any]) -> bool:
    """Whether the rig was stopped in order, by what it published last."""
    return record.get("stopped_at") is not None


def beat_every_s(settings: Settings) -> float:
    """How often a daemon says that it lives."""
    return min(BEAT_TTL_S / 3, settings.lease_s / 3)


def silent_after_s(settings: Settings) -> float:
    """A rig that has said nothing for so long is away: the others settle what it left, when the leases have run out."""
    return min(float(BEAT_TTL_S), settings.lease_s)


def holder(job: Job, settings: Settings) -> str:
    """The rig that has the job's run folder: the one of its last attempt, this one before the first."""
    if settings.shared_runs or not job.attempts:
        return settings.rig
    return job.attempts[-1].rig


# -- calls between rigs -----------------------------------------------------------------------------------------------------


def key_of(store: Store) -> bytes:
    """What signs calls between the rigs of this queue."""
    return store.queue_fact("key", secrets.token_hex(32)).encode()


def sign(key: bytes, *, to: str, method: str, target: str, now: float) -> dict[str, str]:
    """The headers of a call to another rig; `target` is the path with its query."""
    expires = int(now) + SIGNED_FOR_S
    return {"Authorization": f"{SCHEME} {expires} {_signature(key, to, method, target, expires)}"}


def is_signed(key: bytes, header: str, *, to: str, method: str, target: str, now: float) -> bool:
    """Whether a rig of this queue asks `to` for this, which it may ask for, and asks now."""
    found = SIGNATURE.fullmatch(header)
    if not found or not MAY_ASK.fullmatch(f"{method} {target}"):
        return False
    expires = int(found[1])
    fits = hmac.compare_digest(found[2], _signature(key, to, method, target, expires))
    return fits and now <= expires <= now + 2 * SIGNED_FOR_S


@cache
def tls() -> ssl.SSLContext:
    """The machine's own certificates, for rigs behind https."""
    return ssl.create_default_context()


def _signature(key: bytes, to: str, method: str, target: str, expires: int) -> str:
    text = "\n".join(("overnight rig 1", to, method, target, str(expires)))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


# -- joining ------------------------------------------------------------------------------------------------------------------


def _refuse_other_records(store: Store, others: Mapping[str, Mapping[str, Any]]) -> None:
    newest = int(store.queue_fact("records", str(RECORD_VERSION)))
    if newest > RECORD_VERSION:
        raise CannotJoin(
            f"A newer Overnight has written into this queue (records of version {newest}; this one knows "
            f"{RECORD_VERSION}). Update Overnight on this machine."
        )
    for rig, beat in others.items():
        if beat.get("records", RECORD_VERSION) != RECORD_VERSION:
            raise CannotJoin(
                f"Rig {rig} runs another version of Overnight (records of version {beat['records']}; here "
                f"{RECORD_VERSION}). Stop it, and update it, before this one starts."
            )
    if newest < RECORD_VERSION:
        store.set_queue_fact("records", str(RECORD_VERSION))


def _refuse_used_name(store: Store, settings: Settings, beat: Mapping[str, Any] | None) -> None:
    rig, ours = settings.rig, identity(settings)
    fix = f"Give this one another name: `rig` in {settings.home / 'config.toml'}, or OVERNIGHT_RIG."
    # an embedded Redis lies in our own home: whoever spoke there was an earlier life of this rig
    if settings.redis_url is not None and beat is not None and beat.get("identity", ours) != ours:
        raise CannotJoin(f"Another machine or data folder is rig {rig} in this queue now. {fix}")
    for other in store.rigs():
        if other != rig and mailbox(other, "") == mailbox(rig, ""):
            raise CannotJoin(f"The names of rig {rig} and rig {other} are too much alike. {fix}")


def _refuse_other_queue(store: Store, settings: Settings) -> None:
    """Job numbers begin anew in each queue: run folders of one must not be taken for those of another."""
    stamp = settings.home / "queue-id"
    known = stamp.read_text().strip() if stamp.exists() else ""
    queue = store.queue_fact("id", known or uuid.uuid4().hex)
    if known == queue:
        return
    if known and any(settings.runs.glob("[0-9]*")):
        raise CannotJoin(
            f"{settings.runs} holds runs of another queue, and the job numbers of two queues are the same. Move that "
            f"folder away, or use another OVERNIGHT_HOME for this queue."
        )
    stamp.unlink(missing_ok=True)
    _kept(stamp, queue)


def _kept(path: Path, text: str) -> str:
    """A text in a file, written once. It survives a power cut: what stands in the queue does, too, and the two must agree."""
    if path.exists() and (known := path.read_text().strip()):
        return known
    draft = path.with_name(f".{path.name}.tmp")
    with draft.open("w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)
    return text


def host_of(url: str) -> str:
    """The host that a URL names, "" when there is none."""
    return (urlsplit(url).hostname or "").lower()
