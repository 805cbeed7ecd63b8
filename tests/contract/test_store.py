"""The store on a real server: every verb is one transaction, recognises its own repeat, and keeps the indexes exact."""

import json
import threading
import time
from typing import Any

import pytest
from rq import Queue
from rq.serializers import JSONSerializer
from rq.utils import import_attribute

from daemon.facts import Ledger
from daemon.store import (
    ENTRYPOINT,
    OldEpoch,
    RepeatedDifferently,
    SlotTaken,
    Store,
    UnknownJob,
    Wanted,
    connect,
    mailbox,
)
from jobs.model import (
    RECORD_VERSION,
    Cause,
    Condition,
    End,
    InvalidTransition,
    Job,
    Outcome,
    Progress,
    StaleFence,
    State,
    Wish,
    WishKind,
)
from jobs.spec import Spec, parse
from workers.execute import run_attempt

DONE = Outcome(end=End.SUCCEEDED)


def command(**fields: Any) -> Spec:
    return parse({"kind": "command", "argv": ["true"], **fields})


def submit(store: Store, count: int = 1, **fields: Any) -> list[Job]:
    return store.submit([command(**fields)] * count, now=1.0)[0]


def started(store: Store, job_id: str = "1", slots: tuple[str, ...] = ("a",)) -> Job:
    epoch = store.new_epoch("rig")
    offered = store.offer(job_id, rig="rig", slots=slots, epoch=epoch, now=2.0)
    return store.claim(job_id, fence=offered.fence, owner="me", now=3.0, lease_s=30.0)


def rq_entries(store: Store, slot: str = "a") -> list[str]:
    return Queue(mailbox("rig", slot), connection=store.redis, serializer=JSONSerializer).job_ids


def test_queued_jobs_still_find_their_function() -> None:
    assert import_attribute(ENTRYPOINT) is run_attempt


def test_jobs_are_numbered_in_the_order_in_which_they_came(store: Store) -> None:
    assert [job.id for job in submit(store, 3)] == ["1", "2", "3"]
    assert [job.id for job in store.page().jobs] == ["3", "2", "1"]


def test_a_repeated_submission_gives_the_same_jobs_and_another_body_is_refused(store: Store) -> None:
    first, replayed = store.submit([command(), command()], now=1.0, repeat_key="k", body_hash="h")
    again, repeated = store.submit([command(), command()], now=2.0, repeat_key="k", body_hash="h")
    assert (first, replayed, repeated) == (again, False, True)
    with pytest.raises(RepeatedDifferently):
        store.submit([command()], now=3.0, repeat_key="k", body_hash="other")
    assert store.counts()["queued"] == 2


def test_a_job_of_an_undisturbed_run_costs_four_transactions(store: Store) -> None:
    submit(store)
    epoch = store.new_epoch("rig")
    before = _transactions(store)
    submit(store)
    store.offer("2", rig="rig", slots=("a",), epoch=epoch, now=2.0)
    store.claim("2", fence=1, owner="me", now=3.0, lease_s=30.0)
    store.finish("2", fence=1, outcome=DONE, now=4.0)
    assert _transactions(store) - before == 4


def _transactions(store: Store) -> int:
    return int(store.redis.info("commandstats").get("cmdstat_exec", {}).get("calls", 0))


def test_an_offer_is_a_record_its_slots_and_a_mail_together(store: Store) -> None:
    submit(store)
    job = store.offer("1", rig="rig", slots=("a", "b"), epoch=store.new_epoch("rig"), now=2.0)
    assert job.fence == 1 and job.slots == ("a", "b")
    assert [store.occupant("rig", slot).lead for slot in "ab"] == ["a", "a"]  # type: ignore[union-attr]
    assert rq_entries(store, "a") == ["1-1"] and rq_entries(store, "b") == []


def test_a_refused_offer_leaves_nothing(store: Store) -> None:
    submit(store, 2)
    epoch = store.new_epoch("rig")
    store.offer("1", rig="rig", slots=("a",), epoch=epoch, now=2.0)
    for refusal, slots, with_epoch, job_id in (
        (SlotTaken, ("b", "a"), epoch, "2"),
        (OldEpoch, ("b",), epoch - 1, "2"),
        (InvalidTransition, ("b",), epoch, "1"),
        (UnknownJob, ("b",), epoch, "77"),
    ):
        with pytest.raises(refusal):
            store.offer(job_id, rig="rig", slots=slots, epoch=with_epoch, now=3.0)
    assert store.get("2").offer is None and store.occupant("rig", "b") is None and rq_entries(store, "b") == []


def test_two_planners_never_offer_a_job_or_a_slot_twice(store: Store, redis_address: str) -> None:
    count = 60
    submit(store, count)
    epoch = store.new_epoch("rig")
    won: list[str] = []

    def race() -> None:
        mine = Store(connect(redis_address))
        for number in range(1, count + 1):
            try:
                mine.offer(str(number), rig="rig", slots=(f"s{number}",), epoch=epoch, now=2.0)
                won.append(str(number))
            except (SlotTaken, InvalidTransition):
                continue

    racers = [threading.Thread(target=race) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sorted(won, key=int) == [str(n) for n in range(1, count + 1)]
    assert sum(len(rq_entries(store, f"s{n}")) for n in range(1, count + 1)) == count
    assert all(store.get(str(n)).fence == 1 for n in range(1, count + 1))


def test_only_the_first_claim_of_an_offer_counts(store: Store) -> None:
    submit(store)
    started(store)
    assert store.claim("1", fence=1, owner="me", now=9.0, lease_s=30.0).attempt == 1  # its own repeat
    with pytest.raises(InvalidTransition):
        store.claim("1", fence=1, owner="other", now=9.0, lease_s=30.0)


def test_a_late_writer_of_an_old_offer_is_refused(store: Store) -> None:
    submit(store)
    started(store)
    store.finish("1", fence=1, outcome=Outcome(end=End.FAILED, cause=Cause.LOST), now=4.0)
    started(store)
    with pytest.raises(StaleFence):
        store.renew("1", fence=1, progress=None, lease_s=30.0)
    with pytest.raises(StaleFence):
        store.finish("1", fence=1, outcome=DONE, now=5.0)
    assert store.get("1").state is State.RUNNING


def test_the_end_frees_slots_and_lease_and_may_be_repeated(store: Store) -> None:
    submit(store)
    started(store, slots=("a", "b"))
    assert store.leases()["1"] == pytest.approx(30.0, abs=5.0)
    for _ in range(2):
        assert store.finish("1", fence=1, outcome=DONE, now=4.0).state is State.SUCCEEDED
    assert store.occupant("rig", "a") is None and store.occupant("rig", "b") is None and store.leases() == {}


def test_a_renewal_keeps_the_lease_and_tells_the_progress_and_the_wish(store: Store) -> None:
    submit(store)
    started(store)
    store.wish("1", Wish(kind=WishKind.CANCEL, reason="enough", asked_at=5.0))
    job = store.renew("1", fence=1, progress=Progress(step=3, total=9), lease_s=90.0)
    assert job.wish is not None and job.progress == Progress(step=3, total=9)
    assert store.leases()["1"] > 60.0


def test_cancelling_an_offered_job_frees_its_slot_and_its_mail_is_refused(store: Store) -> None:
    submit(store)
    store.offer("1", rig="rig", slots=("a",), epoch=store.new_epoch("rig"), now=2.0)
    store.wish("1", Wish(kind=WishKind.CANCEL, reason="", asked_at=3.0))
    assert store.occupant("rig", "a") is None
    with pytest.raises(InvalidTransition):
        store.claim("1", fence=1, owner="me", now=4.0, lease_s=30.0)


def test_all_of_rqs_keys_may_vanish(store: Store) -> None:
    submit(store)
    started(store)
    for key in store.redis.scan_iter("rq:*"):
        store.redis.delete(key)
    assert store.finish("1", fence=1, outcome=DONE, now=4.0).state is State.SUCCEEDED


def test_lists_filter_by_state_kind_tag_and_text_with_cursors(store: Store) -> None:
    submit(store, 5, tags=["even"], name="sweep alpha")
    submit(store, 5, tags=["odd"], name="sweep beta")
    started(store, "7")
    assert [job.id for job in store.page(Wanted(states=(State.RUNNING,))).jobs] == ["7"]
    assert [job.id for job in store.page(Wanted(tag="even")).jobs] == ["5", "4", "3", "2", "1"]
    assert [job.id for job in store.page(Wanted(text="BETA", states=(State.QUEUED,))).jobs] == ["10", "9", "8", "6"]
    assert store.page(Wanted(kind="finetune")).jobs == ()
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = store.page(limit=3, cursor=cursor)
        seen += [job.id for job in page.jobs]
        if (cursor := page.next) is None:
            break
    assert seen == [str(n) for n in range(10, 0, -1)]


def test_a_page_reads_no_more_than_it_needs_however_many_jobs_there_are(store: Store) -> None:
    submit(store, 5_000)
    before = _keys_read(store)
    assert len(store.page(limit=20).jobs) == 20
    assert _keys_read(store) - before < 50


def _keys_read(store: Store) -> int:
    return int(store.redis.info("stats")["keyspace_hits"])


def test_a_job_that_has_ended_can_be_deleted_and_one_that_waits_can_not(store: Store) -> None:
    submit(store, 2)
    started(store)
    store.finish("1", fence=1, outcome=DONE, now=4.0)
    store.delete("1")
    with pytest.raises(UnknownJob):
        store.get("1")
    with pytest.raises(ValueError, match="cancel it first"):
        store.delete("2")
    assert [job.id for job in store.page().jobs] == ["2"]


def test_a_retried_job_goes_behind_those_that_wait(store: Store) -> None:
    submit(store, 2)
    started(store)
    store.finish("1", fence=1, outcome=Outcome(end=End.FAILED, cause=Cause.BAD_INPUT), now=4.0)
    again = store.retry("1")
    assert again.state is State.QUEUED and again.rank > store.get("2").rank


def test_pauses_are_remembered_from_when_to_when(store: Store) -> None:
    before = time.time()
    store.pause("rig", "cpu:0")
    store.pause("rig", "cpu:0")  # once more changes nothing
    store.pause("rig")
    store.pause("other", "cpu:0")
    store.resume("rig", "cpu:0")
    store.resume("rig", "cpu:1")  # was not paused
    (slot, since, until), (whole, whole_since, lasts) = store.pauses("rig")
    assert (slot, whole, lasts) == ("cpu:0", None, None) and until is not None
    assert before - 1 <= since <= whole_since <= until <= time.time() + 1
    store.forget_rig("rig")
    assert store.pauses("rig") == [] and [slot for slot, _, _ in store.pauses("other")] == ["cpu:0"]


def test_a_pause_is_kept(store: Store) -> None:
    store.pause("rig")
    store.pause("rig", "a")
    assert store.paused() == {"rig", "rig:a"}
    store.resume("rig")
    assert store.paused() == {"rig:a"}


def test_every_change_is_an_event_and_can_be_followed_from_any_point(store: Store) -> None:
    submit(store, 2)
    here = store.last_event_id()
    started(store)
    store.renew("1", fence=1, progress=Progress(step=1, total=2), lease_s=30.0)
    store.finish("1", fence=1, outcome=DONE, now=4.0)
    assert [(e.type, e.job, e.data["state"]) for e in store.events(here)] == [
        ("state", "1", "queued"),
        ("state", "1", "running"),
        ("progress", "1", "running"),
        ("state", "1", "succeeded"),
    ]


def test_a_ledger_that_follows_equals_one_that_reads_anew(store: Store) -> None:
    follower = Ledger(store)
    follower.refresh()
    submit(store, 4)
    store.submit([command(after=["1"])], now=1.0)
    started(store, "1")
    store.finish("1", fence=1, outcome=DONE, now=4.0)
    started(store, "2", slots=("b",))
    store.wish("3", Wish(kind=WishKind.CANCEL, reason="", asked_at=3.0))
    follower.refresh()
    fresh = Ledger(store)
    fresh.refresh()
    assert follower._jobs == fresh._jobs and set(follower._jobs) == {"2", "4", "5"}
    assert follower._fates["1"] is fresh._fates["1"] is State.SUCCEEDED


#: As version 1 stored it; every later version must read it.
RECORD_1 = {
    "id": "7", "kind": "command", "name": "old", "spec": {"argv": ["true"]}, "created_at": 1.0, "rank": 1e12,
    "tags": ["a"], "priority": "normal", "gpus": 1, "after": ["6"], "not_before": None, "window": "night",
    "max_runtime_s": None, "max_attempts": 3, "state": "failed", "held": False, "fence": 1, "attempt": 1,
    "offer": None, "owner": "", "wish": None,
    "progress": {"phase": "training", "step": 1, "total": 2, "eta_s": None, "metrics": {"loss": 1.0}},
    "attempts": [{"number": 1, "fence": 1, "rig": "rig", "slots": ["a"], "started_at": 2.0, "ended_at": 3.0,
                  "end": "failed", "cause": "bad_input", "message": "m", "usage": {}}],
    "next_fields": {}, "started_at": 2.0, "finished_at": 3.0,
    "outcome": {"end": "failed", "cause": "bad_input", "message": "m", "hint": "h", "next_fields": {},
                "metrics": {}, "usage": {}},
    "version": 1,
}  # fmt: skip
#: What version 2 added.
RECORD_2 = {
    **RECORD_1,
    "after": ["6", "ended:5"], "vram_bytes": 8 * 2**30, "estimate": {"steps": 12.0}, "sweep": "7",
    "point": {"learning_rate": 1e-4}, "max_concurrent": 2, "version": 2,
}  # fmt: skip
#: What version 3 added.
RECORD_3 = {
    **RECORD_2,
    "attempts": [{**run, "changes": {"batch_size": 2}} for run in RECORD_1["attempts"]],  # type: ignore[attr-defined]
    "version": 3,
}


@pytest.mark.parametrize("record", [RECORD_1, RECORD_2, RECORD_3], ids=["version 1", "version 2", "version 3"])
def test_a_stored_record_of_every_version_is_read(store: Store, record: dict[str, Any]) -> None:
    store.redis.set("overnight:job:7", json.dumps(record))
    job = store.get("7")
    assert job.outcome is not None and job.outcome.cause is Cause.BAD_INPUT
    assert job.parents[0] == ("6", Condition.SUCCEEDED)
    written = json.loads(json.dumps(job.to_json()))
    written["outcome"] = {name: written["outcome"][name] for name in record["outcome"]}
    written["attempts"] = [{name: written["attempts"][0][name] for name in record["attempts"][0]}]
    assert {name: written[name] for name in record} == {**record, "version": RECORD_VERSION}
