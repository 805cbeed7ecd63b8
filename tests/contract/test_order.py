"""The order of the queue, in a real one: whatever is moved, every job has one place, and nothing else moves."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.order import Place, Side, parse_place
from daemon.store import ORDER, Store, UnknownJob, Wanted
from jobs.model import End, InvalidTransition, Job, Outcome, Priority, State, Wish, WishKind, priority_of
from jobs.spec import parse

NOW = 1_000_000.0
FRESH = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
FIRST, LAST = Place(Side.FIRST), Place(Side.LAST)


def before(job_id: str) -> Place:
    return Place(Side.BEFORE, job_id)


def after(job_id: str) -> Place:
    return Place(Side.AFTER, job_id)


def put(store: Store, *priorities: str) -> list[str]:
    """Waiting jobs, one for each priority."""
    specs = [parse({"kind": "command", "argv": ["true"], "priority": priority}) for priority in priorities]
    return [job.id for job in store.submit(specs, now=NOW)[0]]


def queue(store: Store) -> list[str]:
    """Ids as the planner sees them."""
    return [job.id for job in sorted(store.unfinished().values(), key=lambda job: (job.rank, int(job.id)))]


def run(store: Store, job_id: str) -> Job:
    offered = store.offer(job_id, rig="rig", slots=(f"cpu:{job_id}",), epoch=store.new_epoch("rig"), now=NOW)
    return store.claim(job_id, fence=offered.fence, owner="w", now=NOW, lease_s=60)


def check(store: Store) -> None:
    """What holds after every change."""
    jobs = store.unfinished().values()
    ranks = {job.id: job.rank for job in jobs}
    assert len(set(ranks.values())) == len(ranks), "two jobs have one place"
    assert all(priority_of(job.rank) is job.priority for job in jobs)
    index = {job_id.decode(): rank for job_id, rank in store.redis.zrange(ORDER, 0, -1, withscores=True)}
    assert index == ranks
    priorities = [list(Priority).index(store.get(job_id).priority) for job_id in queue(store)]
    assert priorities == sorted(priorities)


@pytest.mark.parametrize(
    ("moved", "place", "expected"),
    [
        (["3"], FIRST, "3124"),
        (["1"], LAST, "2341"),
        (["4"], before("2"), "1423"),
        (["1"], after("3"), "2314"),
        (["3", "4"], before("1"), "3412"),
        (["4", "3"], before("1"), "4312"),
        (["1", "2"], after("4"), "3412"),
        (["4", "1"], LAST, "2341"),
        (["1", "3"], FIRST, "1324"),
        (["2"], before("3"), "1234"),
        (["2"], after("1"), "1234"),
        (["1", "2", "3", "4"], FIRST, "1234"),
        (["4", "3", "2", "1"], LAST, "4321"),
    ],
)
def test_jobs_stand_where_they_were_put_and_in_the_order_in_which_they_were_named(
    store: Store, moved: list[str], place: Place, expected: str
) -> None:
    put(store, *["normal"] * 4)
    store.arrange(moved, place=place)
    assert "".join(queue(store)) == expected
    check(store)


def test_what_comes_later_stands_behind_all_that_were_moved(store: Store) -> None:
    put(store, *["normal"] * 3)
    for job_id in ("1", "2", "1"):
        store.arrange([job_id], place=LAST)
    [late] = put(store, "normal")
    store.wish("3", Wish(kind=WishKind.CANCEL, reason="", asked_at=NOW))
    store.retry("3")
    assert queue(store) == ["2", "1", late, "3"]
    check(store)


def test_moving_again_to_the_same_place_writes_nothing(store: Store) -> None:
    put(store, *["normal"] * 3)
    for place in (FIRST, after("1"), LAST):
        store.arrange(["2"], place=place)
        told, number = store.last_event_id(), store.redis.get("overnight:seq")
        store.arrange(["2"], place=place)
        assert (store.last_event_id(), store.redis.get("overnight:seq")) == (told, number)


def test_first_and_last_count_among_the_jobs_of_ones_own_priority(store: Store) -> None:
    put(store, "backlog", "normal", "high", "backlog", "normal", "high")
    store.arrange(["4", "5", "6"], place=FIRST)
    assert queue(store) == ["6", "3", "5", "2", "4", "1"]
    store.arrange(["4", "5", "6"], place=LAST)
    assert queue(store) == ["3", "6", "2", "5", "1", "4"]
    check(store)


def test_nobody_moves_beside_a_job_of_another_priority_a_running_one_or_itself(store: Store) -> None:
    put(store, "normal", "normal", "high", "normal")
    run(store, "4")
    for moved, place, words in (
        (["1"], before("3"), "job 1 has priority normal and job 3 high"),
        (["2", "3"], after("1"), "change it first: overnight edit 3 --priority normal"),
        (["1"], before("4"), "job 4 is running; only a waiting job has a place in the queue"),
        (["1", "2"], after("2"), "job 2 cannot stand after itself"),
        (["4"], FIRST, "job 4 is running"),
    ):
        told = store.last_event_id()
        with pytest.raises(InvalidTransition, match=words):
            store.arrange(moved, place=place)
        assert store.last_event_id() == told
    with pytest.raises(UnknownJob):
        store.arrange(["1"], place=before("77"))
    with pytest.raises(UnknownJob):
        store.arrange(["1", "77"], place=FIRST)
    assert queue(store) == ["3", "1", "2", "4"]


def test_a_job_that_comes_back_from_its_run_stands_where_it_stood(store: Store) -> None:
    put(store, *["normal"] * 4)
    fence = run(store, "2").fence
    store.arrange(["4"], place=FIRST)
    store.finish("2", fence=fence, outcome=Outcome(end=End.INTERRUPTED), now=NOW)
    assert queue(store) == ["4", "1", "2", "3"]
    check(store)


def test_where_no_number_is_left_between_two_neighbours_others_make_room(store: Store) -> None:
    put(store, *["backlog"] * 6)
    for turn in range(60):  # each turn halves the room between job 1 and what follows it
        store.arrange([str(2 + turn % 2)], place=after("1"))
        check(store)
    assert queue(store) == ["1", "3", "2", "4", "5", "6"]
    far = {job_id: store.get(job_id).rank for job_id in ("5", "6")}
    assert far == {"5": 2e12 + 5, "6": 2e12 + 6}, "more of them were moved than needed"


def test_a_job_takes_its_rank_along_into_another_priority_and_never_somebody_elses(store: Store) -> None:
    put(store, "normal", "high", "normal", "high")
    store.arrange(["3"], place=before("1"))  # rank 0, as it were
    store.arrange(["4"], place=before("2"))  # rank 1
    store.arrange(["1"], lambda job: job.edited(priority=Priority.HIGH))
    assert queue(store) == ["4", "1", "2", "3"]
    check(store)


def test_an_index_from_an_earlier_version_is_completed(store: Store) -> None:
    put(store, *["normal"] * 3)
    store.redis.delete(ORDER)
    store.arrange(["3"], place=before("2"))
    assert queue(store) == ["1", "3", "2"]


def test_many_hands_at_once_lose_no_job_and_give_no_place_twice(store: Store) -> None:
    put(store, *["normal"] * 12)
    failures: list[BaseException] = []

    def push(own: int) -> None:
        try:
            for turn in range(15):
                store.arrange([str(own)], place=(FIRST, LAST, before("12"), after("11"))[turn % 4])
        except BaseException as error:
            failures.append(error)

    hands = [threading.Thread(target=push, args=(own,)) for own in (1, 2, 3, 4)]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join()
    assert failures == []
    assert sorted(queue(store), key=int) == [str(n) for n in range(1, 13)]
    assert [i for i in queue(store) if int(i) > 4] == [str(n) for n in range(5, 13)]
    check(store)


PRIORITIES = st.sampled_from([str(priority) for priority in Priority])
VERBS = st.sampled_from(["put", "move", "move", "move", "move", "priority", "run", "back", "cancel", "retry"])


@FRESH
@given(st.data(), st.lists(VERBS, min_size=1, max_size=25))
def test_any_sequence_of_changes_keeps_one_order_and_moves_only_what_was_named(
    store: Store, data: st.DataObject, verbs: Sequence[str]
) -> None:
    store.redis.flushall()
    lines: dict[str, list[str]] = {str(priority): [] for priority in Priority}
    for priority in ("normal", "normal", "normal", "high", "backlog", "backlog"):
        lines[priority] += put(store, priority)

    def some(state: State) -> list[str]:
        return sorted((job.id for job in store.page(Wanted(states=(state,)), limit=200).jobs), key=int)

    for verb in verbs:
        waiting, running = some(State.QUEUED), some(State.RUNNING)
        ended = some(State.CANCELLED)
        if verb == "put":
            priority = data.draw(PRIORITIES)
            lines[priority] += put(store, priority)
        elif verb == "move" and waiting:
            priority = data.draw(st.sampled_from([p for p in lines if set(lines[p]) & set(waiting)]))
            here = [job_id for job_id in lines[priority] if job_id in waiting]
            moved = data.draw(st.lists(st.sampled_from(here), unique=True, min_size=1, max_size=3))
            anchors = [job_id for job_id in here if job_id not in moved]
            place = data.draw(st.sampled_from([FIRST, LAST, *map(before, anchors), *map(after, anchors)]))
            store.arrange(moved, place=place)
            lines[priority] = _by_hand(lines[priority], moved, place)
        elif verb == "priority" and waiting:
            job_id, priority = data.draw(st.sampled_from(waiting)), data.draw(PRIORITIES)
            store.arrange([job_id], lambda job, priority=priority: job.edited(priority=Priority(priority)))
            rest = {p: [i for i in line if i != job_id] for p, line in lines.items()}
            if job_id not in lines[priority]:
                at = [i for i in queue(store) if i == job_id or i in rest[priority]].index(job_id)
                lines = {**rest, priority: [*rest[priority][:at], job_id, *rest[priority][at:]]}
        elif verb == "run" and waiting:
            run(store, data.draw(st.sampled_from(waiting)))
        elif verb == "back" and running:
            job = store.get(data.draw(st.sampled_from(running)))
            store.finish(job.id, fence=job.fence, outcome=Outcome(end=End.INTERRUPTED), now=NOW)
        elif verb == "cancel" and waiting:
            job_id = data.draw(st.sampled_from(waiting))
            store.wish(job_id, Wish(kind=WishKind.CANCEL, reason="", asked_at=NOW))
            lines = {p: [i for i in line if i != job_id] for p, line in lines.items()}
        elif verb == "retry" and ended:
            job = store.retry(data.draw(st.sampled_from(ended)))
            lines[job.priority] = [*lines[job.priority], job.id]
        check(store)
        assert queue(store) == [job_id for line in lines.values() for job_id in line]


def _by_hand(line: list[str], moved: list[str], place: Place) -> list[str]:
    rest = [job_id for job_id in line if job_id not in moved]
    at = {Side.FIRST: lambda: 0, Side.LAST: lambda: len(rest)}.get(
        place.side, lambda: rest.index(place.anchor) + (place.side is Side.AFTER)
    )()
    return [*rest[:at], *moved, *rest[at:]]


@pytest.mark.parametrize("text", ["", "top", "before", "before:", "before:x", "first:3", "after:-1", "before:1:2", None, 3, ["first"], "before:²", "after:" + "9" * 19])  # fmt: skip
def test_a_place_is_one_of_four_words(text: Any) -> None:
    with pytest.raises(ValueError, match='is "first", "last", "before:ID" or "after:ID"'):
        parse_place(text)
    assert parse_place("before:0139") == before("139")
