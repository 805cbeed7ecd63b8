"""What holds for every plan, whatever the facts."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from plan_facts import GIB, NOW, facts, job, running

from daemon.explain import explain
from daemon.placement import VRAM_RESERVE_BYTES
from daemon.plan import Facts, Interrupt, Offer, Policy, plan
from daemon.starts import left_s, starts
from jobs.model import Job, Priority, State, Wish, WishKind, rank_of

CARDS = [8, 24, 24, 48]
A_WAITING_JOB: Mapping[str, st.SearchStrategy[Any]] = {
    "gpus": st.sampled_from([1, 1, 1, 2, 3]),
    "priority": st.sampled_from(Priority),
    "held": st.sampled_from([False, False, False, True]),
    "window": st.sampled_from(["night", "any"]),
    "vram_bytes": st.sampled_from([None, 4 * GIB, 20 * GIB, 40 * GIB, 90 * GIB]),
    "max_runtime_s": st.sampled_from([None, None, 600.0]),
    "sweep": st.sampled_from(["", "", "s"]),
    "max_concurrent": st.sampled_from([None, 2]),
    "preflight_due": st.sampled_from([False, False, False, True]),
}
A_SLOT = st.fixed_dictionaries(
    {},
    optional={
        "paused": st.just(True),
        "problem": st.just("in use by game"),
        "resting": st.just("hot"),
        "ready": st.just(False),
        "leave": st.just("in use by game"),
        "room_bytes": st.sampled_from([4 * GIB, 20 * GIB]),
    },
)


@st.composite
def situations(draw: st.DrawFn) -> Facts:
    """A rig in any state: cards of several sizes, some busy, some out; and a queue of all sorts."""
    gpus = draw(st.integers(1, 6))
    memory = draw(st.lists(st.sampled_from(CARDS), min_size=gpus, max_size=gpus))
    free = list(range(gpus))
    jobs: list[Job] = []
    while free and draw(st.booleans()):
        taken = [free.pop() for _ in range(min(len(free), draw(st.integers(1, 2))))]
        jobs.append(_running(draw, 1000 + len(jobs), *(f"GPU-{index}" for index in taken)))
    for number in draw(st.lists(st.integers(1, 999), max_size=12, unique=True)):
        chosen = {name: draw(values) for name, values in A_WAITING_JOB.items()}
        chosen["max_concurrent"] = chosen["max_concurrent"] if chosen["sweep"] else None
        jobs.append(job(number, **chosen))
    known = {each.id: draw(st.sampled_from([None, 60.0, 1000.0, 5000.0])) for each in jobs}
    slot = {index: draw(A_SLOT) for index in range(gpus) if draw(st.integers(0, 3)) == 0}
    for each in slot.values():
        each.setdefault("power_limit_w", 300.0)
    return facts(
        *jobs,
        gpus=gpus,
        memory=memory,
        slot=slot,
        window_open=draw(st.sampled_from([True, True, False])),
        window_end=draw(st.sampled_from(["checkpoint", "finish"])),
        closes_at=draw(st.sampled_from([None, NOW + 500, NOW + 50_000])),
        expected_s={name: seconds for name, seconds in known.items() if seconds is not None},
        policy=Policy(power_budget_w=draw(st.sampled_from([None, None, 700.0]))),
    )


def _running(draw: st.DrawFn, number: int, *slots: str) -> Job:
    priority, window = draw(st.sampled_from(Priority)), draw(st.sampled_from(["night", "any"]))
    ran_s = draw(st.sampled_from([5.0, 500.0]))
    found = running(number, *slots, priority=priority, window=window, ran_s=ran_s)
    wish = Wish(kind=WishKind.PREEMPT, reason="", asked_at=NOW - 3)
    return found.asked(wish) if draw(st.integers(0, 5)) == 0 else found


def offered(found: Facts) -> list[Offer]:
    return [decision for decision in plan(found) if isinstance(decision, Offer)]


@given(situations())
def test_no_slot_is_offered_twice_or_while_it_is_not_free(found: Facts) -> None:
    slots = {s.slot.id: s for s in found.slots}
    given_out = [slot for offer in offered(found) for slot in offer.slots]
    assert len(given_out) == len(set(given_out))
    for slot in given_out:
        s = slots[slot]
        assert s.job is None and not s.paused and s.problem is None and s.resting is None and s.ready


@given(situations())
def test_a_job_gets_as_many_slots_as_it_asked_for_and_each_has_the_memory(found: Facts) -> None:
    slots = {s.slot.id: s for s in found.slots}
    for offer in offered(found):
        each = found.jobs[offer.job]
        assert len(set(offer.slots)) == each.gpus
        for slot in offer.slots:
            room = slots[slot].room_bytes or slots[slot].slot.memory_bytes
            assert (each.vram_bytes or 0) + bool(each.vram_bytes) * VRAM_RESERVE_BYTES <= room


@given(situations())
def test_no_job_starts_against_its_window_or_while_it_is_held(found: Facts) -> None:
    for offer in offered(found):
        each = found.jobs[offer.job]
        assert not each.held and (found.window_open or each.window == "any" or each.preflight_due)
        if each.preflight_due:
            continue
        if each.window == "night" and found.window_end == "finish" and found.closes_at and each.id in found.expected_s:
            ends_at = NOW + found.expected_s[each.id]
            assert ends_at <= found.closes_at + found.policy.window_overrun_s


@given(situations())
def test_with_checkpoint_no_night_job_outlives_its_window(found: Facts) -> None:
    closed = replace(found, window_open=False, window_end="checkpoint")
    stopped = {d.job for d in plan(closed) if isinstance(d, Interrupt)}
    for each in closed.here:
        if each.state is State.RUNNING and each.window == "night":
            assert each.wish is not None or each.id in stopped


@given(situations(), st.randoms(use_true_random=False))
def test_the_plan_is_the_same_in_whatever_order_the_jobs_are_told(found: Facts, shuffle: random.Random) -> None:
    names = list(found.jobs)
    shuffle.shuffle(names)
    mixed = replace(found, jobs={name: found.jobs[name] for name in names})
    assert plan(mixed) == plan(found) == plan(replace(found))


@given(situations())
def test_priority_is_inverted_by_a_stated_back_fill_only(found: Facts) -> None:
    """Who waits could not have started on what those before it left; and who uses a slot that is kept says for whom."""
    started = {offer.job: offer for offer in offered(found)}
    waits = starts(found).waits
    for ahead in found.startable:
        if ahead.id in started or (ahead.max_concurrent and ahead.sweep) or ahead.preflight_due:
            continue
        before = {slot for o in started.values() if _order(found.jobs[o.job]) < _order(ahead) for slot in o.slots}
        free = [s for s in found.slots if s.free and s.fits(ahead) and s.slot.id not in before]
        kept = {slot for name, wait in waits.items() if _order(found.jobs[name]) < _order(ahead) for slot in wait.slots}
        if found.policy.power_budget_w is None:
            assert len([s for s in free if s.slot.id not in kept]) < ahead.gpus, "it could have started itself"
        mine = set(waits[ahead.id].slots) if ahead.id in waits else set()
        for offer in started.values():
            if _order(found.jobs[offer.job]) > _order(ahead) and mine & set(offer.slots):
                assert offer.ahead_of in waits


def _order(each: Job) -> tuple[float, int]:
    """A preflight stands before all of its job's priority."""
    return rank_of(each.priority, -1_000_000) if each.preflight_due else each.rank, int(each.id)


def _lasts_s(found: Facts, each: Job) -> float:
    closes = (found.closes_at or float("inf")) - NOW if each.window == "night" else float("inf")
    return min(found.expected_s.get(each.id, float("inf")), each.max_runtime_s or float("inf"), closes)


def _ready_in_s(found: Facts, each: Job, taken: set[str]) -> float | None:
    """When it could start if nobody passed it."""
    times = []
    for s in found.slots:
        if s.usable and s.fits(each) and s.slot.id not in taken:
            occupant = found.jobs.get(s.job or "")
            times.append(left_s(found, occupant) if occupant else 0.0)
    return sorted(times)[each.gpus - 1] if len(times) >= each.gpus else None


@given(situations())
def test_the_first_that_waits_for_slots_is_not_delayed_by_those_behind_it(found: Facts) -> None:
    """By the expected ends: with everybody behind it started, it still gets its slots when it would have alone."""
    started = {offer.job: offer for offer in offered(found)}
    first = next((each for each in found.startable if each.id not in started and not each.max_concurrent), None)
    if first is None or first.preflight_due or found.policy.power_budget_w is not None:
        return
    before = {slot for o in started.values() if _order(found.jobs[o.job]) < _order(first) for slot in o.slots}
    alone_s = _ready_in_s(found, first, before)
    if alone_s is None or alone_s == float("inf"):
        return
    times = []
    passing = {
        slot: found.jobs[o.job]
        for o in started.values()
        if _order(found.jobs[o.job]) > _order(first)
        for slot in o.slots
    }
    for s in found.slots:
        if not s.usable or not s.fits(first) or s.slot.id in before:
            continue
        if (other := passing.get(s.slot.id)) is not None:
            yields = other.priority is Priority.BACKLOG and first.priority is not Priority.BACKLOG
            times.append(0.0 if yields else _lasts_s(found, other))
        else:
            occupant = found.jobs.get(s.job or "")
            times.append(left_s(found, occupant) if occupant else 0.0)
    assert sorted(times)[first.gpus - 1] <= alone_s


@given(situations())
def test_only_backlog_gives_way_and_only_where_a_job_then_starts(found: Facts) -> None:
    stopped = [d.job for d in plan(found) if isinstance(d, Interrupt) and d.job not in found.leaving]
    assert len(stopped) == len(set(stopped))
    for name in stopped:
        each = found.jobs[name]
        assert each.priority is Priority.BACKLOG and each.state is State.RUNNING and each.wish is None
        assert NOW - each.attempts[-1].started_at >= found.policy.min_run_s
    needed = sum(each.gpus for each in found.startable if each.priority is not Priority.BACKLOG)
    lead = [found.jobs[name].slots for name in stopped]
    assert len(lead) <= needed, "no more jobs are stopped than slots are lacking"


@given(situations())
def test_a_preflight_alone_stops_nothing_and_keeps_nothing(found: Facts) -> None:
    """What is asked or kept is so for jobs in their own place, which could start."""
    checks = {each.id for each in found.waiting if each.preflight_due} - {each.id for each in found.startable}
    assert not checks & set(starts(found).waits)


@given(situations())
def test_with_a_budget_the_limits_never_add_up_to_more(found: Facts) -> None:
    budget_w = found.policy.power_budget_w
    if budget_w is None:
        return
    out = {slot for offer in offered(found) for slot in offer.slots}
    before_w = sum(s.power_limit_w or 0.0 for s in found.slots if s.job)
    after_w = sum(s.power_limit_w or 0.0 for s in found.slots if s.job or s.slot.id in out)
    assert after_w <= max(budget_w, before_w)


@given(situations())
def test_every_waiting_job_says_why(found: Facts) -> None:
    for each in found.waiting:
        assert explain(found, each)


@settings(max_examples=30)
@given(st.integers(1, 8), st.lists(st.tuples(st.integers(1, 4), st.floats(10, 5000), st.floats(0.3, 3)), max_size=40))
def test_nobody_starves_even_when_the_expected_times_are_wrong(
    gpus: int, queue: list[tuple[int, float, float]]
) -> None:
    """A rig simulated to the end: times that are off by a factor of three delay jobs, but each one starts."""
    jobs = {str(n): job(n, gpus=min(size, gpus)) for n, (size, _, _) in enumerate(queue, 1)}
    expected = {str(n): seconds for n, (_, seconds, _) in enumerate(queue, 1)}
    real = {str(n): seconds * factor for n, (_, seconds, factor) in enumerate(queue, 1)}
    now, ends, on = NOW, dict[str, float](), dict[str, tuple[str, ...]]()
    for _ in range(10 * len(queue) + 1):
        left = {name: expected[name] - (now - (ends[name] - real[name])) for name in ends}
        busy = {name: running(int(name), *on[name]) for name in ends}
        found = replace(facts(*{**jobs, **busy}.values(), gpus=gpus, expected_s={**expected, **left}), now=now)
        for offer in offered(found):
            on[offer.job], ends[offer.job] = offer.slots, now + real[offer.job]
        if not ends:
            break
        now = min(ends.values())
        for name in [name for name, end in ends.items() if end <= now]:
            del ends[name], jobs[name]
    assert not jobs
