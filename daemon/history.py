"""What earlier jobs took: how long the next one will, and how much memory. Pure; fed with records of jobs that ended.

A job's *shapes* go from "the same document on the same card" to "the same model, anywhere". The most specific one that has
been seen answers. Where steps (or rows) are known, time grows with them.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.model import Attempt, End, Job, State

#: So many runs of one shape are kept: old ones say little about today's drivers and data.
KEPT_PER_SHAPE = 20
#: So many shapes are kept; the one that was seen least recently goes.
KEPT_SHAPES = 10_000
#: Step counts this far apart tell the time before the first step from the time per step.
STEPS_APART = 1.3
#: A job that is over its time has a little left, and more the longer it is over it.
OVERRUN_BASE, OVERRUN_GROWTH = 0.05, 0.5
#: Fields that change neither time nor memory.
NO_MATTER = frozenset({
    "name", "tags", "priority", "after", "not_before", "window", "max_runtime_s", "max_attempts", "vram_gib", "seed", "retries", "notify", "preflight",
    "trackers",
    "learning_rate", "weight_decay", "warmup_ratio", "lr_scheduler_type", "temperature", "top_p", "top_k", "min_p",
    "repetition_penalty", "output_format", "bad_rows", "secrets", "logging_steps",
    "lr_scheduler_kwargs", "warmup_steps", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "beta", "desirable_weight",
    "undesirable_weight", "metric_for_best_model", "greater_is_better", "load_best_model_at_end",
})  # fmt: skip
#: Fields that decide what one step costs.
STEP_FIELDS = (
    "method", "objective", "optim", "pure_bf16", "effective_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "packing", "gradient_checkpointing",
    "batch_size", "max_new_tokens", "n", "engine", "dtype", "tasks", "num_fewshot", "batch_sizes", "prompt_lengths", "new_tokens", "dtypes", "quantizations", "repeats",
)  # fmt: skip

#: What a preflight takes: loading, a few steps, a checkpoint.
PREFLIGHT_S = 180.0

Shape = tuple[object, ...]


@dataclass(frozen=True)
class Ran:
    """One job that succeeded."""

    job: str
    duration_s: float
    steps: float | None = None
    peak_vram_bytes: int | None = None
    energy_j: float | None = None


@dataclass(frozen=True)
class Expected:
    """How long a job will take: the median, and what nine of ten stay below."""

    median_s: float
    p90_s: float
    #: From so many earlier runs.
    runs: int


class History:
    """Durations and peaks by shape."""

    def __init__(self) -> None:
        #: Rises when something new is known.
        self.version = 0
        # tuples, replaced as a whole: other threads may be reading
        self._ran: dict[Shape, tuple[Ran, ...]] = {}
        self._kinds: dict[str, tuple[float, ...]] = {}
        #: What preflights have foretold of jobs that have not run yet.
        self._foretold: dict[Shape, tuple[Ran, ...]] = {}
        #: Whose preflight, by the fence of that run, was taken in: every word of a running job comes by here.
        self._heard: dict[str, int] = {}
        self._learned: dict[str, None] = {}
        self._told: dict[tuple[Shape, float | None], Expected] = {}

    def learn(self, job: Job, card: Callable[[str], str] = lambda slot: "") -> None:
        """Take in a record; only jobs that succeeded count, each once. `card`: the name of what a slot is."""
        if job.state is not State.SUCCEEDED or job.id in self._learned or not job.attempts:
            return
        _remember(self._learned, job.id, 2 * KEPT_SHAPES)
        ran = Ran(job.id, duration_s(job), steps_of(job), _peak_bytes(job.attempts), _energy_j(job))
        name = card(job.attempts[-1].slots[0])
        for shape in (*shapes(job), *(_on(shape, name) for shape in shapes(job))):
            self._ran[shape] = (*self._ran.pop(shape, ()), ran)[-KEPT_PER_SHAPE:]
        while len(self._ran) > KEPT_SHAPES:
            del self._ran[next(iter(self._ran))]
        self._kinds[job.kind] = (*self._kinds.get(job.kind, ()), ran.duration_s)[-KEPT_PER_SHAPE:]
        self._told.clear()
        self.version += 1

    def learn_preflight(self, job: Job, card: Callable[[str], str] = lambda slot: "") -> None:
        """Take in what a job's preflight has foretold: it counts until a job of the shape has really run."""
        checked = next((run for run in reversed(job.attempts) if run.end is End.CHECKED), None)
        if not job.measured.get("expected_s") or checked is None or self._heard.get(job.id) == checked.fence:
            return
        self._heard.pop(job.id, None)
        self._heard[job.id] = checked.fence
        while len(self._heard) > KEPT_SHAPES:
            del self._heard[next(iter(self._heard))]
        foretold = (
            Ran(job.id, job.measured["expected_s"], steps_of(job), _whole(job.measured.get("peak_vram_bytes")), job.measured.get("expected_j")),
        )  # fmt: skip
        name = card(checked.slots[0])
        for shape in shapes(job, similar=False):
            for key in (shape, _on(shape, name)):
                self._foretold[key] = foretold
        self._told.clear()
        self.version += 1
        while len(self._foretold) > KEPT_SHAPES:
            del self._foretold[next(iter(self._foretold))]

    def has_run(self, job: Job) -> bool:
        """Whether a job with the same document, but for what changes neither time nor memory, has succeeded."""
        return shapes(job)[0] in self._ran

    def expected(self, job: Job, slot_name: str = "") -> Expected | None:
        """How long the whole job takes on such a card; None when nothing like it has run. "" is any card."""
        for shape in shapes(job):
            for key in (_on(shape, slot_name), shape) if slot_name else (shape,):
                if ran := self._ran.get(key) or self._foretold.get(key):
                    return self._tell(key, ran, steps_of(job))
        return None

    def expected_s(self, job: Job, slot_name: str = "") -> float | None:
        """Seconds that a waiting job will still take: the median of the most specific shape, less what it has done."""
        expected = self.expected(job, slot_name)
        return None if expected is None else expected.median_s * (1.0 - done_fraction(job))

    def expected_j(self, job: Job, slot_name: str = "") -> float | None:
        """Energy that the whole job takes: its expected time at the power that those like it have drawn."""
        for shape in shapes(job):
            for key in (_on(shape, slot_name), shape) if slot_name else (shape,):
                ran = self._ran.get(key) or self._foretold.get(key, ())
                if watts := [each.energy_j / each.duration_s for each in ran if each.energy_j and each.duration_s]:
                    return statistics.median(watts) * self._tell(key, ran, steps_of(job)).median_s
        return None

    def rest_s(self, job: Job, now: float, slot_name: str = "") -> float | None:
        """Seconds that a running job has left, by its own word, else by those before it. Never negative."""
        if job.in_preflight:
            return still_s(PREFLIGHT_S, max(0.0, now - job.attempts[-1].started_at))
        if job.progress is not None and job.progress.eta_s is not None:
            return max(0.0, job.progress.eta_s)
        expected = self.expected(job, slot_name)
        elapsed_s = max(0.0, now - job.attempts[-1].started_at)
        if expected is None:
            return None
        earlier = [run for run in job.attempts[:-1] if run.end is End.INTERRUPTED and not run.preflight]
        earlier_s = sum(map(_ran_s, earlier)) if resumes(job) else 0.0
        return still_s(expected.median_s - earlier_s, elapsed_s)

    def guess_s(self, kind: str) -> float | None:
        """The median of a kind: for a job that is like no other."""
        ran = self._kinds.get(kind)
        return statistics.median(ran) if ran else None

    def peak_vram_bytes(self, job: Job) -> int | None:
        """The most memory that a job of the same shape has used on one GPU. None when there was none: a similar one says nothing."""
        if takes_what_there_is(job):
            return None
        for shape in shapes(job, similar=False):
            known = (*self._ran.get(shape, ()), *self._foretold.get(shape, ()))
            if peaks := [ran.peak_vram_bytes for ran in known if ran.peak_vram_bytes]:
                return max(peaks)
        return None

    def _tell(self, key: Shape, ran: Iterable[Ran], steps: float | None) -> Expected:
        if (told := self._told.get((key, steps))) is None:
            told = self._told[key, steps] = _expect(list(ran), steps)
        return told


class Expectations(Mapping[str, float]):
    """Seconds by job, for the planner: made when asked for, and remembered while record and history stay the same.

    Of a waiting job like no other nothing is said, of a running one a guess.
    """

    def __init__(self, history: History):
        self._history = history
        self._jobs: Mapping[str, Job] = {}
        self._now = 0.0
        self._cards: Mapping[str, str] = {}
        self._memo: dict[str, tuple[Job, float | None]] = {}
        self._basis: tuple[object, ...] = ()

    def at(self, now: float, jobs: Mapping[str, Job], cards: Mapping[str, str]) -> "Expectations":
        """The same for this moment. `cards`: slot -> name of its card."""
        basis = (self._history.version, tuple(cards.items()))
        fresh = Expectations(self._history)
        fresh._jobs, fresh._now, fresh._cards, fresh._basis = jobs, now, cards, basis
        # shared, as what it says does not depend on the moment
        fresh._memo = self._memo if basis == self._basis and len(self._memo) <= 2 * len(jobs) + 1_000 else {}
        return fresh

    def __getitem__(self, job_id: str) -> float:
        seconds = self._seconds(self._jobs[job_id])
        if seconds is None:
            raise KeyError(job_id)
        return seconds

    def __iter__(self) -> Iterator[str]:
        return (job_id for job_id, job in self._jobs.items() if self._seconds(job) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _seconds(self, job: Job) -> float | None:
        if job.state is State.RUNNING:
            rest_s = self._history.rest_s(job, self._now, self._cards.get(job.slots[0], ""))
            return self._guessed_rest_s(job) if rest_s is None else rest_s
        if job.in_preflight:
            return PREFLIGHT_S
        known = self._memo.get(job.id)
        if known is None or known[0] is not job:
            known = self._memo[job.id] = (job, self._waiting_s(job))
        return known[1]

    def _guessed_rest_s(self, job: Job) -> float | None:
        """By its kind: with no end in sight at all, the slots that a gang keeps could serve nobody meanwhile."""
        guess_s = self._history.guess_s(job.kind)
        return None if guess_s is None else still_s(guess_s, max(0.0, self._now - job.attempts[-1].started_at))

    def _waiting_s(self, job: Job) -> float | None:
        """On the slowest card that it could get: to promise too much is worse."""
        names = (
            [self._cards.get(slot, "") for slot in job.slots[:1]] or list(dict.fromkeys(self._cards.values())) or [""]
        )
        known = [seconds for name in names if (seconds := self._history.expected_s(job, name)) is not None]
        return max(known, default=None)


def shapes(job: Job, *, similar: bool = True) -> list[Shape]:
    """What the job has in common with others, the most specific first. `similar`: with what only resembles it."""
    spec, gpus = job.effective_spec, job.gpus
    found: list[Shape] = [(job.kind, gpus, "document", _document(spec))]
    if job.sweep:
        found.append((job.kind, gpus, "sweep", job.sweep))
    if job.kind == "command":
        if similar and (program := _program(spec.get("argv", ()))):
            found.append((job.kind, gpus, "program", spec.get("cwd"), *program))
        return found
    step = [tuple(value) if isinstance(value := spec.get(name), list) else value for name in STEP_FIELDS]
    model = (spec.get("model"), spec.get("adapter") is not None)
    found.append((job.kind, gpus, "step", *model, *step, (spec.get("lora") or {}).get("r")))
    if similar:
        found.append((job.kind, gpus, "model", *model))
    return found


def takes_what_there_is(job: Job) -> bool:
    """Whether it goes on until the GPU is full: its peak tells the GPU's size, not its need."""
    finds_its_size = job.kind == "generate" and job.effective_spec.get("batch_size") is None
    return job.kind == "benchmark" or finds_its_size


def still_s(expected_s: float, elapsed_s: float) -> float:
    """What is left of a run that was expected to take so long. Never nothing: it still runs."""
    over_s = elapsed_s - expected_s
    return max(-over_s, OVERRUN_BASE * elapsed_s + OVERRUN_GROWTH * over_s)


def steps_of(job: Job) -> float | None:
    """Optimizer steps, or rows to answer: told, estimated, or as they were counted while it ran."""
    counted = job.progress.total if job.progress else 0
    steps = job.spec.get("max_steps") or job.estimate.get("steps") or job.estimate.get("rows") or counted
    return float(steps) if isinstance(steps, (int, float)) and steps > 0 else None


def resumes(job: Job) -> bool:
    """Whether an interrupted run goes on where it stopped. Recipes do; of a command nobody knows."""
    return job.kind != "command"


def done_fraction(job: Job) -> float:
    """The share of a waiting job's work that an interrupted run has done and saved."""
    if not job.attempts or job.attempts[-1].end is not End.INTERRUPTED or not resumes(job) or job.progress is None:
        return 0.0
    if job.attempts[-1].preflight:
        return 0.0
    return job.progress.fraction


def duration_s(job: Job) -> float:
    """Seconds from start to end without interruptions: what runs that it resumed from had done counts, what failed does not."""
    return sum(_ran_s(run) for run in _useful(job))


def _useful(job: Job) -> list[Attempt]:
    """The runs whose work is in the result."""
    ran = [run for run in job.attempts if not run.preflight]
    return [run for run in ran if run.end is End.SUCCEEDED or (resumes(job) and run.end is End.INTERRUPTED)]


def _energy_j(job: Job) -> float | None:
    """Energy of those runs; None when it was not measured for all of them."""
    measured = [float(run.usage.get("energy_j") or 0.0) for run in _useful(job)]
    return sum(measured) if measured and all(measured) else None


def _expect(ran: list[Ran], steps: float | None) -> Expected:
    if steps is not None and all(each.steps for each in ran):
        took = _by_steps(ran)
        share = [each.duration_s / max(1e-9, took(each.steps or steps)) for each in ran]
        durations = [took(steps) * each for each in share]
    else:
        durations = [each.duration_s for each in ran]
    ordered = sorted(durations)
    return Expected(statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))], len(ordered))


def _by_steps(ran: list[Ran]) -> Callable[[float], float]:
    """Seconds for so many steps: a line through what was seen; in proportion while the counts are alike."""
    steps, durations = [each.steps or 1.0 for each in ran], [each.duration_s for each in ran]
    if max(steps) < STEPS_APART * min(steps):
        per_step = statistics.median(d / s for d, s in zip(durations, steps, strict=True))
        return lambda count: per_step * count
    slope, base = statistics.linear_regression(steps, durations)
    if slope <= 0:
        return lambda count: statistics.median(durations)
    if base < 0:
        slope, base = statistics.linear_regression(steps, durations, proportional=True)
    return lambda count: base + slope * count


def _program(argv: Sequence[str]) -> tuple[str, ...]:
    """What runs, without its arguments: `python -u train.py`, `sh -c <script>`. Nothing for a program alone, which may do anything."""
    for at, word in enumerate(argv[1:], 1):
        if not word.startswith("-"):
            return tuple(argv[: at + 1])
    return ()


def _document(spec: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in spec.items() if name not in NO_MATTER}, sort_keys=True)


def _on(shape: Shape, card: str) -> Shape:
    return (*shape, "on", card)


def _ran_s(run: Attempt) -> float:
    return max(0.0, run.ended_at - run.started_at) if run.ended_at is not None else 0.0


def _peak_bytes(attempts: Iterable[Attempt]) -> int | None:
    peaks = [int(peak) for run in attempts if (peak := run.usage.get("peak_vram_bytes"))]
    return max(peaks, default=None)


def _whole(count: float | None) -> int | None:
    return None if count is None else round(count)


def _remember(known: dict[str, None], name: str, limit: int) -> None:
    known[name] = None
    while len(known) > limit:
        del known[next(iter(known))]
