"""A sweep in pictures: seeds are taken together, two axes are a coloured table, all axes stand beside each other."""

from typing import Any

from api.sweep_charts import LEVELS, picture
from daemon.sweep_table import Table, table
from jobs.model import Attempt, End, Job, Outcome, State
from jobs.sweep import Goal, Sweep

RAN = Attempt(number=1, fence=1, rig="r", slots=("a",), started_at=0.0, ended_at=1.0)


def of(points: list[dict[str, Any]], values: list[float | None], goal: Goal | None = None, **base: Any) -> Table:
    """A sweep whose jobs came to these values; None: it waits."""
    jobs = [
        Job(
            id=str(at), kind="command", name=f"job {at}", spec={}, created_at=0.0, rank=0.0, sweep="1", point=point,
            state=State.QUEUED if value is None else State.SUCCEEDED,
            attempts=() if value is None else (RAN,),
            outcome=None if value is None else Outcome(end=End.SUCCEEDED, metrics={"eval_loss": value}),
        )
        for at, (point, value) in enumerate(zip(points, values, strict=True), 1)
    ]  # fmt: skip
    axes = tuple(dict.fromkeys(name for point in points for name in point))
    sweep = Sweep(id="1", last=str(len(jobs)), name="s", method="grid", axes=axes, base=base, goal=goal, created_at=0.0)
    return table(sweep, jobs, lambda job: {})


def grid(a: list[Any], b: list[Any], seeds: list[int]) -> list[dict[str, Any]]:
    return [{"lr": x, "lora.r": y, **({"seed": s} if len(seeds) > 1 else {})} for x in a for y in b for s in seeds]


def test_seeds_are_a_mean_and_a_spread() -> None:
    made = picture(of([{"lr": 1.0, "seed": 1}, {"lr": 1.0, "seed": 2}, {"lr": 2.0, "seed": 1}], [1.0, 2.0, 1.6]))
    assert made.has_seeds
    first, second = made.groups
    assert (first.point, first.mean, first.spread_text) == ({"lr": 1.0}, 1.5, "± 0.71")
    assert second.spread is None and second.spread_text == "" and second.address == "/jobs/3"
    assert first.address == "/compare?ids=1,2"


def test_the_best_group_is_the_one_with_the_best_mean_by_the_goal() -> None:
    lower = picture(of([{"lr": 1.0}, {"lr": 2.0}], [1.0, 2.0]))
    higher = picture(of([{"lr": 1.0}, {"lr": 2.0}], [1.0, 2.0], Goal(maximize="eval_loss")))
    assert lower.best is not None and lower.best.point == {"lr": 1.0}
    assert higher.best is not None and higher.best.point == {"lr": 2.0}


def test_the_best_are_compared_with_the_base_or_the_first() -> None:
    points = [{"lr": 1.0}, {"lr": 2.0}, {"lr": 3.0}]
    assert picture(of(points, [3.0, 2.0, 1.0])).comparison == "/compare?ids=1,3,2"
    assert picture(of(points, [3.0, 2.0, 1.0], lr=2.0)).comparison == "/compare?ids=2,3,1"
    nested = of([{"lora.r": 8}, {"lora.r": 16}], [1.0, 2.0], lora={"r": 16})
    assert picture(nested).comparison == "/compare?ids=2,1"
    assert picture(of(points, [1.0, None, None])).comparison == ""


def test_two_axes_are_a_table_with_numbers_in_its_cells() -> None:
    made = picture(of(grid([1e-4, 2e-4, 4e-4], [8, 16], [1]), [1.0, 2.0, 3.0, 4.0, 5.0, None]))
    heat = made.heat
    assert heat is not None and (heat.across, heat.down) == ("lora.r", "lr")
    assert heat.columns == ["8", "16"] and [label for label, _ in heat.lines] == ["1e-4", "2e-4", "4e-4"]
    cells = [cell for _, line in heat.lines for cell in line]
    assert [cell.group and cell.group.text for cell in cells] == ["1", "2", "3", "4", "5", ""]
    assert cells[0].level == LEVELS and cells[0].is_best and cells[4].level == 0
    assert cells[5].level is None and cells[5].note == "waiting"


def test_seeds_are_no_axis_of_the_table() -> None:
    made = picture(of(grid([1, 2], [8, 16], [1, 2, 3]), [float(n) for n in range(12)]))
    assert made.heat is not None and made.heat.lines[0][1][0].group.text == "1"  # type: ignore[union-attr]


def test_one_axis_three_axes_and_a_sparse_space_make_no_table() -> None:
    assert picture(of([{"lr": 1}, {"lr": 2}], [1.0, 2.0])).heat is None
    assert picture(of([{"a": 1, "b": 1, "c": 1}, {"a": 2, "b": 2, "c": 2}], [1.0, 2.0])).heat is None
    diagonal = [{"a": float(n), "b": float(n)} for n in range(9)]
    assert picture(of(diagonal, [float(n) for n in range(9)])).heat is None


def test_the_parallel_view_has_every_axis_and_the_metric_last_and_draws_the_best_on_top() -> None:
    points = [{"lr": lr, "how": how} for lr in (1e-5, 1e-3) for how in ("linear", "cosine")]
    made = picture(of(points, [4.0, 3.0, 2.0, 1.0]))
    parallel = made.parallel
    assert parallel is not None and [axis.name for axis in parallel.axes] == ["lr", "how", "eval loss"]
    assert [axis.percent for axis in parallel.axes] == [0, 50, 100] and parallel.axes[-1].is_goal
    assert parallel.tracks[-1].path == "M0 0L500 1000L1000 1000" and parallel.tracks[-1].level == LEVELS
    assert "The best, eval loss 1: lr 0.001, how cosine." in parallel.alt


def test_values_that_say_nothing_stand_in_the_middle_and_break_nothing() -> None:
    made = picture(of([{"lr": 1, "a": None}, {"lr": 1, "a": [1]}, {"lr": 1, "a": {"b": "<b>"}}], [1.0, 1.0, 1.0]))
    assert made.parallel is not None and all("NaN" not in track.path for track in made.parallel.tracks)
    assert picture(of([{"lr": 1}], [None])).parallel is None
    assert picture(of([], [])).groups == []
