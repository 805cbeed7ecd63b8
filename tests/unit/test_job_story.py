"""What a job's page tells beyond the record."""

from typing import Any

import pytest

from api.job_panel import measured_runs
from api.job_story import batch_hint, bounds, comparable, loss_panel, parameters, runs
from api.log_search import pieces
from api.svg import usual_gap
from jobs.model import Attempt, Cause, End, Job, State
from jobs.spec import dump, parse
from jobs.sweep import Sweep

GIB = 2**30


def attempt(start: float, until: float | None, **fields: Any) -> Attempt:
    return Attempt(
        **{"number": 1, "fence": 1, "rig": "r", "slots": ("a",), "started_at": start, "ended_at": until} | fields
    )  # type: ignore[arg-type]


def job(job_id: str = "7", attempts: tuple[Attempt, ...] = (), **fields: Any) -> Job:
    spec = dump(parse({"kind": "finetune", "model": "m", "data": "d", **fields.pop("document", {})}))
    return Job(id=job_id, kind="finetune", name=f"job {job_id}", spec=spec, created_at=0.0, rank=0.0, attempts=attempts, **fields)  # fmt: skip


def test_a_run_tells_what_it_changed_for_the_next_and_what_it_was_before() -> None:
    first = attempt(0, 9, end=End.FAILED, cause=Cause.OOM_GPU, changes={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8})  # fmt: skip
    second = attempt(9, 20, end=End.FAILED, cause=Cause.OOM_GPU, changes={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16})  # fmt: skip
    one, two, three = runs(job(attempts=(first, second, attempt(20, None))))
    assert list(one.changes) == [("per_device_train_batch_size", "4", "2"), ("gradient_accumulation_steps", "4", "8")]
    assert list(two.changes) == [("per_device_train_batch_size", "2", "1"), ("gradient_accumulation_steps", "8", "16")]
    assert three.changes == [] and [line.at for line in (one, two, three)] == [1, 2, 3]


def test_a_later_runs_beginning_is_found_by_the_rows_moments() -> None:
    times = [(float(step), 100.0 + step if step <= 5 else 200.0 + step) for step in range(1, 11)]
    assert bounds(times, [attempt(100, 150), attempt(200, None)]) == [(6.0, "run 2")]
    assert bounds(times, [attempt(50, 60), attempt(100, None)]) == [], "what the first run wrote was begun anew"
    assert bounds([], [attempt(100, 150), attempt(200, None)]) == []
    two_at_once = [attempt(100, 150), attempt(160, 170), attempt(200, None)]
    assert bounds(times, two_at_once) == [(6.0, "run 3")], "a run that told nothing has no place"


def test_the_loss_is_broken_where_steps_are_missing_and_its_best_evaluation_is_marked() -> None:
    loss = [(float(step), 1.0 / step) for step in range(1, 101) if not 40 < step < 60]
    evals = [(20.0, 1.0), (60.0, 0.5), (100.0, 0.7)]
    panel = loss_panel({"loss": loss, "eval_loss": evals}, [], job())
    assert panel is not None and panel.chart.best is not None
    assert panel.chart.lines[0].path.count("M") == 2 and panel.chart.lines[1].path.count("M") == 1
    assert panel.chart.best.text == "0.5" and "best evaluation 0.5 at step 60" in panel.alt


def test_a_gap_is_told_from_a_usual_distance_and_a_thinned_line_has_none() -> None:
    assert usual_gap([(0.0, 0.0), (1.0, 0.0)]) is None
    assert usual_gap([(0.0, 0.0), (10.0, 0.0), (20.0, 0.0)]) == 40
    many = [(float(step), 0.0) for step in range(10_000)]
    assert (usual_gap(many) or 0) > 10_000 / 150


@pytest.mark.parametrize(
    ("peak", "document", "words"),
    [
        (6, {}, "per_device_train_batch_size = 8 with gradient_accumulation_steps = 2 fits for certain"),
        (5, {}, "per_device_train_batch_size = 16 with gradient_accumulation_steps = 1 fits for certain"),
        (6, {"gradient_accumulation_steps": 1}, "per_device_train_batch_size = 12 fits for certain"),
        (14, {}, "a slightly larger per_device_train_batch_size than 4 may fit"),
        (23, {}, "close to all"),
    ],
)
def test_the_next_batch_size_is_hinted_at_on_the_safe_side(peak: int, document: dict[str, Any], words: str) -> None:
    assert words in batch_hint(job(document=document).spec, peak * GIB, 24 * GIB)


def test_a_command_gets_no_hint_about_batches() -> None:
    assert batch_hint({"kind": "command", "argv": ["x"]}, 2 * GIB, 24 * GIB) == ""


def test_parameters_are_a_difference_to_the_sweeps_base_and_to_the_defaults() -> None:
    one = job(document={"learning_rate": 1e-3, "max_length": 2048}, point={"learning_rate": 1e-3}, sweep="3")
    base = {"kind": "finetune", "model": "m", "data": "d", "max_length": 2048}
    sweep = Sweep(id="3", last="9", created_at=0.0, name="s", method="grid", axes=("learning_rate",), base=base)
    told = parameters(one, sweep)
    assert [(p.name, p.value, p.base) for p in told.point] == [("learning_rate", "0.001", "base 2e-4")]
    assert {p.name for p in told.given} == {"model", "data", "max_length"}
    assert "lora.r" in {p.name for p in told.usual}
    assert {p.name for p in parameters(job(document={"packing": True}), None).given} == {"model", "data", "packing"}


def test_comparisons_suggest_themselves() -> None:
    ran = (attempt(0, 1),)
    one = job("7", ran, after=("3",))
    alike, other = job("5", ran, document={"learning_rate": 1e-3}), job("6", ran, document={"model": "another"})
    found = comparable(one, None, [job("3", ran)], [one, other, alike, job("4")])
    assert [(c.title, c.address) for c in found] == [("#3 job 3", "/compare?ids=3,7"), ("#5 job 5", "/compare?ids=5,7")]
    assert found[1].words == "same model and data; other learning_rate"
    assert comparable(job("8"), None, [], [alike]) == [], "what never ran cannot be compared"


def test_telemetry_covers_all_runs_unless_it_waited_longer_than_it_ran() -> None:
    close = (attempt(0, 50), attempt(60, 100))
    far = (attempt(0, 50), attempt(5000, 5100))
    assert measured_runs(job(attempts=close), "r", 100.0) == list(close)
    assert measured_runs(job(attempts=far), "r", 5100.0) == [far[1]]
    assert measured_runs(job(attempts=close), "another", 100.0) == []
    assert measured_runs(job(state=State.QUEUED), "r", 1.0) == []


@pytest.mark.parametrize(
    ("line", "needle", "found"),
    [("a Loss b loss", "loss", ("a ", "Loss", " b ", "loss", "")), ("none", "x", ("none",)), ("İ loss", "loss", ("İ loss",)), ("<b>", "<b>", ("", "<b>", ""))],
)  # fmt: skip
def test_a_line_is_taken_apart_at_the_text(line: str, needle: str, found: tuple[str, ...]) -> None:
    assert pieces(line, needle) == found and "".join(found) == line
