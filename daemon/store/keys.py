"""Every key in Redis. No other module names a key or an RQ queue.

All of ours begin with `overnight:`, so that an access list can hold us to them (docs/several-rigs.md).

    overnight:job:<id>             string  the record, JSON
    overnight:seq                  counter of job ids
    overnight:jobs                 zset    every job, by number
    overnight:jobs:state:<state>   zset    the same by state; also :kind:<kind>, :tag:<tag>
    overnight:order                zset    every job that waits or runs, by its rank
    overnight:ended                zset    every job that ended, by the time of its end
    overnight:alike                hash    fingerprint of the work that a document asks for -> the newest job that does it
    overnight:children:<id>        set     jobs that wait, or waited, for this one
    overnight:sweep:<id>           string  what a sweep is, JSON; its id is its first job's
    overnight:sweep:<id>:rungs     hash    "<step>:<job>" -> its metric when it came to this step; for sweeps with halving
    overnight:sweeps               zset    every sweep, by number
    overnight:slot:<rig>:<slot>    string  who occupies it: job, fence, lead slot; absent when free
    overnight:leases               zset    running job -> end of its lease (Redis TIME, seconds)
    overnight:paused               set     rigs ("<rig>") and slots ("<rig>:<slot>") that take no new job
    overnight:paused:since         hash    the same -> since when (Redis TIME, seconds)
    overnight:pauses:<rig>         list    pauses that have ended, JSON: [slot or null for the whole rig, from, to]; the last 1,000
    overnight:quarantine           hash    "<rig>:<slot>" -> a GPU's record of being out of service for a fault, JSON
    overnight:rigs                 hash    rig -> its slots and settings in force, JSON
    overnight:beat:<rig>           string  the daemon's last beat, JSON, with a TTL
    overnight:beats                zset    rig -> the moment of its last beat (Redis TIME, seconds)
    overnight:queue                hash    of this queue: its id, the newest record version that wrote here, the rigs' key
    overnight:inputs:<rig>         set     SHA-256 of the uploads that lie on the rig: where to ask, not the truth
    overnight:epoch:<rig>          counter of the daemon's lives; an older life's offers are refused
    overnight:events               stream  every change, for the planner, the page and messages
    overnight:repeat:<key>         string  Idempotency-Key -> body hash and job ids, with a TTL
    overnight:once:<name>          string  present when something that may happen once has happened, with a TTL
    rq:*                           RQ's own; one queue (a mailbox) per slot. Never read for truth; deleting it is harmless
"""

import re

from jobs.model import State

#: What RQ calls in the work-horse: a wire name, pinned by a test.
ENTRYPOINT = "workers.execute.run_attempt"

P = "overnight:"
SEQ = P + "seq"
JOBS = P + "jobs"
ORDER = P + "order"
ENDED = P + "ended"
ALIKE = P + "alike"
SWEEPS = P + "sweeps"
LEASES = P + "leases"
PAUSED = P + "paused"
PAUSED_SINCE = P + "paused:since"
QUARANTINE = P + "quarantine"
RIGS = P + "rigs"
BEATS = P + "beats"
QUEUE = P + "queue"
EVENTS = P + "events"


def job_key(job_id: str) -> str:
    return f"{P}job:{job_id}"


def state_key(state: State) -> str:
    return f"{JOBS}:state:{state}"


def kind_key(kind: str) -> str:
    return f"{JOBS}:kind:{kind}"


def tag_key(tag: str) -> str:
    return f"{JOBS}:tag:{tag}"


def children_key(job_id: str) -> str:
    return f"{P}children:{job_id}"


def sweep_key(sweep_id: str) -> str:
    return f"{P}sweep:{sweep_id}"


def rungs_key(sweep_id: str) -> str:
    return f"{P}sweep:{sweep_id}:rungs"


def slot_key(rig: str, slot: str) -> str:
    return f"{P}slot:{rig}:{slot}"


def pauses_key(rig: str) -> str:
    return f"{P}pauses:{rig}"


def inputs_key(rig: str) -> str:
    return f"{P}inputs:{rig}"


def beat_key(rig: str) -> str:
    return f"{P}beat:{rig}"


def epoch_key(rig: str) -> str:
    return f"{P}epoch:{rig}"


def idempotency_key(key: str) -> str:
    return f"{P}repeat:{key}"


def once_key(name: str) -> str:
    return f"{P}once:{name}"


def mailbox(rig: str, slot: str) -> str:
    """The RQ queue of one slot, and the name of the worker that listens to it."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"{rig}-{slot}")


def intermediate_key(mailbox: str) -> str:
    """Where RQ keeps an entry between the mailbox and its worker."""
    return f"rq:queue:{mailbox}:intermediate"


def entry_key(entry: str) -> str:
    """RQ's own record of a mailbox's entry."""
    return f"rq:job:{entry}"


def mailbox_keys(mailbox: str) -> tuple[str, ...]:
    """All that RQ keeps of a mailbox and its worker."""
    return f"rq:queue:{mailbox}", intermediate_key(mailbox), f"rq:worker:{mailbox}", f"rq:wip:{mailbox}"
