"""Runs beside each other: deltas with direction and word, and never a judgement that nobody can make."""

from typing import Any

from api.comparison import Run, compare, delta_words
from api.page_compare import smooth, verdict
from jobs.model import Attempt, End, Job, Outcome, State


def run(job_id: str, metrics: dict[str, Any], curves: Any = None, state: State = State.SUCCEEDED, **fields: Any) -> Run:
    spec = {"kind": "finetune", "model": "m", "data": "d", "learning_rate": 1e-4, **fields}
    ran = Attempt(number=1, fence=1, rig="r", slots=("a",), started_at=0.0, ended_at=60.0 * int(job_id), usage={"energy_j": 3.6e6, "peak_vram_bytes": 8 << 30})  # fmt: skip
    outcome = Outcome(end=End.SUCCEEDED, metrics=metrics) if state.final else None
    job = Job(id=job_id, kind="finetune", name=f"job {job_id}", spec=spec, created_at=0.0, rank=0.0, state=state, attempts=(ran,), outcome=outcome)  # fmt: skip
    return Run(job, curves or {}, {"eval_loss": 3.0})


def test_deltas_stand_against_the_first_run_with_arrow_and_word() -> None:
    made = compare([run("1", {"eval_loss": 1.34}), run("2", {"eval_loss": 1.22}), run("3", {"eval_loss": 1.5})])
    [metric] = made.metrics
    assert [cell.words for cell in metric.cells] == ["", "0.12 lower, better", "0.16 higher, worse"]
    assert [cell.is_best for cell in metric.cells] == [False, True, False]
    assert metric.direction == "lower"
    assert verdict(made) == "Job 2 is best: eval loss 1.22, 0.12 lower, better (\u22129.0 %) than job 1.".replace(
        ", better (", " ("
    )


def test_more_is_better_where_the_name_or_the_sweep_says_so() -> None:
    made = compare([run("1", {"accuracy": 0.8}), run("2", {"accuracy": 0.7})])
    assert made.metrics[0].cells[1].words == "0.1 lower, worse"
    assert verdict(made) == "None beats the baseline, job 1: accuracy 0.8."
    made = compare([run("1", {"zeal": 1.0}), run("2", {"zeal": 2.0})], {"zeal": "higher"})
    assert made.metrics[0].cells[1].words == "1 higher, better"


def test_a_metric_of_unknown_direction_is_not_judged() -> None:
    made = compare([run("1", {"zeal": 1.0}), run("2", {"zeal": 3.0})])
    assert made.metrics[0].cells[1].words == "2 higher" and made.metrics[0].cells[1].judgement is None
    assert not any(cell.is_best for cell in made.metrics[0].cells)
    assert "no number in common" in verdict(made)


def test_evaluations_of_other_rows_stand_there_and_nothing_is_claimed() -> None:
    def evaluated(number: str, loss: float, tokens: str) -> Run:
        on = {"definition": 1, "tokens_sha256": tokens, "data_sha256": "d", "rows": 9, "asked_rows": 9, "max_new_tokens": 8}  # fmt: skip
        return run(number, {"eval_loss": loss, "eval_loss_stderr": 0.03, "accuracy": loss / 10, "measured_on": on})

    made = compare([evaluated("1", 2.0, "a"), evaluated("2", 1.5, "a"), evaluated("3", 1.0, "b")])
    loss, accuracy = made.metrics
    assert [(cell.text, cell.words) for cell in loss.cells] == [
        ("2 ± 0.03", ""), ("1.5 ± 0.03", "0.5 lower, better"), ("1 ± 0.03", "not on the same rows"),
    ]  # fmt: skip
    assert [cell.is_best for cell in loss.cells] == [False, True, False]
    assert [cell.words for cell in accuracy.cells] == ["", "0.05 lower, worse", "0.1 lower, worse"]
    [fine_tuned] = compare([evaluated("1", 2.0, "a"), run("2", {"eval_loss": 1.0})]).shared
    assert fine_tuned.cells[1].words == "not on the same rows"


def test_equal_values_are_the_same_and_none_is_best() -> None:
    made = compare([run("1", {"eval_loss": 1.0}), run("2", {"eval_loss": 1.0})])
    assert made.metrics[0].cells[1].words == "the same" and not made.metrics[0].cells[1].is_best
    assert "has the same eval loss" in verdict(made)


def test_what_a_run_lacks_is_no_number_and_no_delta() -> None:
    made = compare([run("1", {"eval_loss": 1.0, "only": 5.0}), run("2", {"bleu": 3.0})])
    assert [metric.name for metric in made.metrics] == ["eval_loss", "bleu", "only"]
    assert all(metric.told == 1 for metric in made.metrics) and made.shared == () and len(made.single) == 3
    assert made.metrics[1].cells[0].value is None and made.metrics[1].cells[1].words == ""


def test_a_run_that_has_not_ended_has_its_last_numbers_so_far() -> None:
    made = compare([run("1", {"eval_loss": 1.0}), run("2", {}, state=State.RUNNING)])
    assert made.metrics[0].cells[1].words == "2 higher, worse" and not made.runs[1].is_final


def test_costs_are_less_or_more() -> None:
    made = compare([run("1", {}), run("2", {})])
    costs = {metric.name: metric.cells[1].words for metric in made.costs}
    assert (
        costs["run time"] == "1\u202fmin 0\u202fs more, worse".replace(" 0\u202fs", "")
        and costs["energy"] == "the same"
    )


def test_only_fields_that_differ_are_parameters_by_default() -> None:
    made = compare([run("1", {}), run("2", {}, learning_rate=2e-4, name="another", priority="high")])
    assert [(f.name, f.values) for f in made.differing] == [("learning_rate", (1e-4, 2e-4))]
    assert len(made.fields) > 20


def test_curves_that_several_have_come_first() -> None:
    line = [(1.0, 1.0), (2.0, 2.0)]
    made = compare(
        [run("1", {}, {"own": line, "grad": line, "loss": line}), run("2", {}, {"loss": line, "grad": line})]
    )
    assert made.charted == ("loss", "grad", "own")


def test_a_delta_has_no_more_digits_than_it_deserves() -> None:
    assert delta_words(-0.120000001, "better") == "0.12 lower, better"
    assert delta_words(1234.5678, None) == "1\u202f230 higher"


def test_a_noisy_curve_is_smoothed_without_moving_its_ends() -> None:
    points = [(float(step), step + (1.0 if step % 2 else -1.0)) for step in range(1000)]
    smoothed = smooth(points)
    assert smoothed[0] == points[0] and smoothed[-1] == points[-1] and len(smoothed) == len(points)
    assert all(abs(value - step) < 0.2 for step, value in smoothed[20:-20])
    assert smooth(points[:60]) == points[:60]
