"""A thousand made-up nights: the planner beside others, and what was foretold beside what came."""

import math
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace

from baselines import easy, first_come, first_fit
from figures import Figures
from optimum import least_makespan_s, least_waiting_s
from rehearsal import EVENING, Night, Planner, Played, Task, cards, play, with_expected

from daemon.forecast import forecast
from daemon.plan import Facts, plan
from daemon.window import Windows
from jobs.model import Job, Priority

HOUR_S = 3_600.0
NIGHTS, SMALL = 1_000, 200
OURS, FIRST_COME, FIRST_FIT, EASY = "plan()", "first come, first served", "first fit", "EASY back-filling"
PLANNERS: dict[str, Planner] = {OURS: plan, FIRST_COME: first_come, FIRST_FIT: first_fit, EASY: easy}
WEIGHTS = {Priority.HIGH: 4.0, Priority.NORMAL: 2.0, Priority.BACKLOG: 1.0}
#: Cards with what a job on them may need, GiB, and how fast they are.
CARDS = {8: (6, 1.0), 12: (10, 1.2), 24: (20, 1.8), 48: (40, 2.0), 80: (70, 3.0)}
#: What is thought of a job's length is off by so much (the sigma of a log-normal), and of some jobs nothing is known.
ERROR_SIGMA, UNKNOWN_SHARE = 0.3, 0.1
#: The median of what has run before: what a running job of unknown length is taken for.
GUESS_S = 1_200.0
#: Seconds that rounding and saving may cost.
TOLERANCE_S = 1.0
EVENING_LOOK = "in the evening"


def nights(*, quick: bool) -> Iterator[Figures]:
    """Makespan and weighted waiting over first come first served, EASY back-filling and the optimum; the forecast's error."""
    yield from _compared(100 if quick else NIGHTS)
    yield from _small(20 if quick else SMALL)
    yield from _foretold(50 if quick else NIGHTS // 4)


def _compared(count: int) -> Iterator[Figures]:
    makespan, waiting, gangs, worse = Figures("ratio"), Figures("ratio"), Figures("h"), Figures("nights")
    worse_in: dict[str, list[int]] = {"makespan": [], "weighted waiting": []}
    for seed in range(count):
        night = a_night(seed)
        played = {name: play(night, planner) for name, planner in PLANNERS.items()}
        assert all(len(p.ends) == len(night.tasks) for p in played.values()), f"night {seed}: not all have ended"
        for name, other in played.items():
            gangs.add(f"longest wait of a gang: {name}", longest_wait_s(other, gangs=True) / HOUR_S)
            if name != OURS:
                makespan.add(f"makespan: ours / {name}", played[OURS].makespan_s / other.makespan_s)
                waiting.add(f"weighted waiting: ours / {name}", _waiting_ratio(played[OURS], other))
        for what in _worse(played[OURS], played[FIRST_COME]):
            worse_in[what].append(seed)
    for what, seeds in worse_in.items():
        worse.add(f"worse in {what}, of {count}", len(seeds))
        for variant, how in WITHOUT.items():
            nights = [how(a_night(seed)) for seed in seeds]
            left = [n for n in nights if what in _worse(play(n, plan), play(n, first_come))]
            worse.add(f"worse in {what}, {variant}", len(left))
    yield from (makespan, waiting, gangs, worse)


def _worse(ours: Played, theirs: Played) -> list[str]:
    """In what the night went worse than with the other, by more than a second."""
    later = ours.makespan_s > theirs.makespan_s + TOLERANCE_S
    longer = weighted_waiting_s(ours) > weighted_waiting_s(theirs) + TOLERANCE_S
    return ["makespan"] * later + ["weighted waiting"] * longer


def _small(count: int) -> Iterator[Figures]:
    """Everything is there in the evening, durations are known: what the best schedule of all makes of it."""
    found = Figures("ratio")
    for seed in range(count):
        night = a_small_night(seed)
        fair = play(night, first_come)
        weights = {task.number: WEIGHTS[task.priority] for task in night.tasks}
        best_s = least_makespan_s(night)
        least_s = least_waiting_s(night, weights)
        latest_s = {task.number: fair.starts[str(task.number)] - EVENING for task in night.tasks}
        fair_s = least_waiting_s(night, weights, latest_s)
        for name in (OURS, FIRST_COME, EASY):
            played = play(night, PLANNERS[name])
            if best_s is not None:
                found.add(f"makespan: {name} / optimum", played.makespan_s / best_s)
            if least_s is not None:
                found.add(f"weighted waiting: {name} / optimum", _ratio(weighted_waiting_s(played), least_s))
            if fair_s is not None:
                found.add(f"weighted waiting: {name} / fair optimum", _ratio(weighted_waiting_s(played), fair_s))
    yield found


def _foretold(count: int) -> Iterator[Figures]:
    """Each night is foretold twice, and compared with how the same planner then fared."""
    error, share, answer = Figures("min"), Figures("%"), Figures("%")
    for what, how in SURPRISES.items():
        right = of = 0
        for seed in range(count):
            night = how(a_night(seed))
            played = play(night, plan, keep_facts=True)
            for moment, facts in _looks(played).items():
                told = forecast(facts, night.windows, lasts=_lasts(night, facts), guess_s=lambda kind: GUESS_S)
                ends = {name: outlook.end_at for name, outlook in told.jobs.items() if outlook.end_at is not None}
                errors_s = [abs(end_at - played.ends[name]) for name, end_at in ends.items()]
                ahead_s = [played.ends[name] - facts.now for name in ends]
                if errors_s:
                    error.add(f"{what}: {moment}", statistics.median(errors_s) / 60)
                    share.add(f"{what}: {moment}", 100 * sum(errors_s) / max(1.0, sum(ahead_s)))
                if told.window_ends_at and moment == EVENING_LOOK:
                    of += len(told.jobs)
                    is_late = {name for name in told.jobs if played.ends[name] > told.window_ends_at + TOLERANCE_S}
                    right += sum((name in told.late) == (name in is_late) for name in told.jobs)
        answer.add(f"{what}: right about the morning", 100 * right / max(1, of))
    yield error
    yield share
    yield answer


def _as_expected(night: Night) -> Night:
    tasks = with_expected(_all_there(night).tasks, lambda task: task.lasts_s)
    return replace(night, tasks=tasks, speeds={}, in_use=())


def _all_there(night: Night) -> Night:
    tasks = tuple(replace(task, arrives_at=EVENING) for task in night.tasks)
    return replace(night, tasks=tasks, in_use=())


def _without_backlog(night: Night) -> Night:
    normal = {Priority.BACKLOG: Priority.NORMAL}
    tasks = tuple(replace(task, priority=normal.get(task.priority, task.priority)) for task in night.tasks)
    return replace(night, tasks=tasks)


#: What might be the reason of a worse night.
WITHOUT: dict[str, Callable[[Night], Night]] = {
    "without backlog": _without_backlog,
    "with nothing unknown": _as_expected,
    "without backlog and with nothing unknown": lambda night: _as_expected(_without_backlog(night)),
}
#: What the evening does not know.
SURPRISES: dict[str, Callable[[Night], Night]] = {
    "nothing unknown": _as_expected,
    "lengths off": _all_there,
    "lengths off, new jobs, other use": lambda night: night,
}


def _lasts(night: Night, facts: Facts) -> Callable[[Job, str], float | None]:
    """As history knows it: how long such jobs take on this card, less what an interrupted one has done."""

    def lasts(job: Job, slot: str) -> float | None:
        expected_s = night.tasks[int(job.id) - 1].expected_s
        return None if expected_s is None else facts.expected_s.get(job.id, expected_s) / night.speed([slot])

    return lasts


def _looks(played: Played) -> dict[str, Facts]:
    """The first look of the evening, and the first one three hours later."""
    later = next((f for f in played.seen if f.now >= EVENING + 3 * HOUR_S), None)
    return {EVENING_LOOK: played.seen[0]} | ({"three hours later": later} if later else {})


# -- made-up nights -------------------------------------------------------------------------------------------------------


def a_night(seed: int) -> Night:
    """1 to 8 cards, alike or not; single jobs and gangs; some come later; windows and other use of a card in some nights."""
    dice = random.Random(seed)
    gpus = dice.randint(1, 8)
    alike = dice.random() < 0.5
    memory = [dice.choice(list(CARDS))] * gpus if alike else sorted(dice.choice(list(CARDS)) for _ in range(gpus))
    slots = cards(*memory)
    has_window = dice.random() < 0.5
    tasks = tuple(a_task(dice, number, memory) for number in range(1, dice.randint(4, 8) * max(2, gpus)))
    in_use = ()
    if gpus > 1 and dice.random() < 0.3:
        start = EVENING + dice.uniform(0, 4) * HOUR_S
        in_use = ((dice.choice(slots).id, start, start + dice.uniform(0.2, 2) * HOUR_S),)
    return Night(
        slots,
        tasks,
        Windows.parse("22:00-08:00") if has_window else Windows(),
        speeds={slot.id: CARDS[gib][1] for slot, gib in zip(slots, memory, strict=True)},
        in_use=in_use,
        guess_s=GUESS_S,
    )


def a_small_night(seed: int) -> Night:
    """Few jobs on few cards, all there in the evening, all of one speed, with known durations."""
    dice = random.Random(10_000 + seed)
    gpus = dice.randint(1, 4)
    memory = [24] * gpus if dice.random() < 0.5 else sorted(dice.choice((8, 24, 48)) for _ in range(gpus))
    tasks = [replace(a_task(dice, n, memory), arrives_at=EVENING) for n in range(1, dice.randint(5, 10))]
    whole = [replace(task, lasts_s=float(round(task.lasts_s)), priority=Priority.NORMAL) for task in tasks]
    return Night(cards(*memory), with_expected(whole, lambda task: task.lasts_s))


def a_task(dice: random.Random, number: int, memory: list[int]) -> Task:
    """Half an hour in the median, minutes to eight hours."""
    lasts_s = min(8 * HOUR_S, max(60.0, dice.lognormvariate(math.log(HOUR_S / 2), 1.0)))
    gpus = dice.choice([1, 1, 1, 2, min(4, len(memory))]) if len(memory) > 1 else 1
    fitting = sorted(memory, reverse=True)[gpus - 1]  # so large a card there is for each of its GPUs
    needs = [need for gib, (need, _) in CARDS.items() if gib <= fitting]
    resumes = dice.random() < 0.7 or lasts_s > 2 * HOUR_S
    known = dice.random() >= UNKNOWN_SHARE
    return Task(
        number,
        lasts_s,
        lasts_s * dice.lognormvariate(0.0, ERROR_SIGMA) if known else None,
        arrives_at=EVENING if dice.random() < 0.7 else EVENING + dice.uniform(0, 4) * HOUR_S,
        gpus=gpus,
        vram_bytes=dice.choice(needs) << 30 if dice.random() < 0.7 else None,
        priority=dice.choices(list(Priority), (1, 7, 2))[0],
        resumes=resumes,
    )


# -- measures -------------------------------------------------------------------------------------------------------------


def weighted_waiting_s(played: Played) -> float:
    """The mean wait of a job, by the weight of its priority."""
    weights = [WEIGHTS[task.priority] for task in played.night.tasks]
    waits = [played.waited_s(task) for task in played.night.tasks]
    return sum(w * s for w, s in zip(weights, waits, strict=True)) / sum(weights)


def longest_wait_s(played: Played, *, gangs: bool) -> float:
    """Of those that ask for more than one GPU, or of all; 0 when there are none. Backlog does not count: it gives way."""
    tasks = [t for t in played.night.tasks if (t.gpus > 1 or not gangs) and t.priority is not Priority.BACKLOG]
    return max((played.waited_s(task) for task in tasks), default=0.0)


def _waiting_ratio(ours: Played, theirs: Played) -> float:
    return _ratio(weighted_waiting_s(ours), weighted_waiting_s(theirs))


def _ratio(ours: float, theirs: float) -> float:
    """Waits of less than a second are none."""
    return max(ours, TOLERANCE_S) / max(theirs, TOLERANCE_S)
