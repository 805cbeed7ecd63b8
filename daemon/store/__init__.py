"""The record in Redis: jobs, sweeps and rigs, as verbs. Only `keys.py` names a key, and lists them all at its head.

Every verb is one transaction: read, pure step, write, indexes, event, and for an offer RQ's entry, together or not at all.
Each recognises its own repeat, so that a lost reply may simply be asked again.

    keys.py         every key, what is in it, and what RQ is told
    wire.py         the client of Redis, and its answers as Python values
    records.py      what all verbs share: transaction, reading, writing with indexes and event
    submission.py   submit, repeated, restore              by api, `overnight reindex`
    lists.py        get, page, ended, counts               by everybody
    search.py       search                                 by the page
    wanted.py       which jobs somebody asks for
    attempts.py     offer, claim, renew, finish            by the loop (offers) and the workers
    wishes.py       wish, arrange, retry, abandon, delete  by api and the loop
    sweeps.py       sweep, cancel_sweep, rungs             by api and sweep_watch.py
    rigs.py         pause, beat, quarantines, inputs       by every rig's daemon, and api
    stream.py       events                                 by the loop and api
"""

from daemon.store.attempts import Attempts, Occupant, OldEpoch, SlotTaken
from daemon.store.keys import ENTRYPOINT, ORDER, mailbox
from daemon.store.lists import Lists, Page
from daemon.store.records import UnknownJob
from daemon.store.rigs import BEAT_TTL_S, Rigs
from daemon.store.search import Search, after
from daemon.store.stream import Event, Stream, parse_event
from daemon.store.submission import RepeatedDifferently, Submission, new_job
from daemon.store.sweeps import UnknownSweep
from daemon.store.wanted import NO_SWEEP, Wanted
from daemon.store.wire import connect
from daemon.store.wishes import Wishes

__all__ = [
    "BEAT_TTL_S",
    "ENTRYPOINT",
    "NO_SWEEP",
    "ORDER",
    "Event",
    "Occupant",
    "OldEpoch",
    "Page",
    "RepeatedDifferently",
    "SlotTaken",
    "Store",
    "UnknownJob",
    "UnknownSweep",
    "Wanted",
    "after",
    "connect",
    "mailbox",
    "new_job",
    "parse_event",
]


class Store(Submission, Lists, Search, Attempts, Wishes, Rigs, Stream):
    """The jobs, as verbs. Those of sweeps come with `Submission`."""
