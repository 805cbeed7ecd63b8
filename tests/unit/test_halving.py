"""Which jobs of a sweep stop early, and why; and the table that comes out."""

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from daemon.halving import rungs_reached, to_stop
from daemon.sweep_table import table
from jobs.model import Cause, End, Job, Outcome, State
from jobs.sweep import Goal, Halving, Sweep

THIRD = Halving(first_step=50, factor=3)
LOSS = Goal(minimize="eval_loss")
NINE = {str(n): float(n) for n in range(1, 10)}


def test_the_best_third_goes_on_and_the_others_are_told_why() -> None:
    found = to_stop(THIRD, LOSS, {50: NINE}, set(NINE))
    assert set(found) == {"4", "5", "6", "7", "8", "9"}
    assert found["4"] == "Stopped early: eval_loss 4 at step 50 is not among the best third of 9."


def test_what_is_to_be_maximized_is() -> None:
    assert set(to_stop(Halving(first_step=1, factor=2), Goal(maximize="accuracy"), {1: NINE}, set(NINE))) == {*"1234"}


def test_nobody_stops_before_enough_have_come() -> None:
    assert to_stop(THIRD, LOSS, {50: {"1": 1.0, "2": 9.0}}, {"1", "2"}) == {}
    assert set(to_stop(THIRD, LOSS, {50: {"1": 1.0, "2": 9.0, "3": 8.0}}, {"1", "2", "3"})) == {"2", "3"}


def test_jobs_that_have_ended_are_compared_with_and_not_stopped() -> None:
    assert set(to_stop(THIRD, LOSS, {50: NINE}, {"3", "9"})) == {"9"}


def test_who_has_gone_on_is_judged_there_only() -> None:
    later = {"9": 2.0}  # the worst at step 50 has come to the next comparison, the first one there
    assert set(to_stop(THIRD, LOSS, {50: NINE, 150: later}, {"8", "9"})) == {"8"}


def test_who_is_as_good_as_the_last_that_goes_on_goes_on_too() -> None:
    assert to_stop(THIRD, LOSS, {50: dict.fromkeys("123", 1.0)}, set("123")) == {}


def test_the_steps_of_comparison_grow_by_the_factor() -> None:
    assert list(rungs_reached(THIRD, 500.0)) == [50, 150, 450]
    assert list(rungs_reached(THIRD, 49.9)) == []
    assert len(list(rungs_reached(THIRD, 1e300))) < 30


some_rungs = st.dictionaries(
    st.sampled_from([50, 150, 450]), st.dictionaries(st.sampled_from("abcdefghij"), st.floats(0, 9)), max_size=3
)


@given(some_rungs, st.sets(st.sampled_from("abcdefghij")), st.integers(2, 5))
def test_who_stops_is_behind_its_share_where_it_came_last(
    rungs: dict[int, dict[str, float]], running: set[str], factor: int
) -> None:
    stopped = set(to_stop(Halving(first_step=50, factor=factor), LOSS, rungs, running))
    assert stopped <= running
    for job in stopped:
        values = rungs[max(step for step, values in rungs.items() if job in values)]
        better = sum(value < values[job] for value in values.values())
        assert len(values) >= factor and better >= math.ceil(len(values) / factor)


# -- the table -----------------------------------------------------------------------------------------------------------

SWEEP = Sweep(id="1", last="6", created_at=0.0, name="s", method="grid", axes=("seed",), base={})


def member(number: int, state: State, outcome: Outcome | None = None, **facts: Any) -> Job:
    point = {"seed": number}
    return Job(
        id=str(number), kind="command", name="s", spec={}, created_at=0.0, rank=1.0, sweep="1", point=point,
        state=state, outcome=outcome, **facts,
    )  # fmt: skip


def done(number: int, **metrics: Any) -> Job:
    return member(number, State.SUCCEEDED, Outcome(end=End.SUCCEEDED, metrics=metrics))


def test_the_best_that_succeeded_comes_first_and_who_has_not_begun_last() -> None:
    early = Outcome(
        end=End.CANCELLED, message="Stopped early: eval_loss 9 at step 50 is not among the best third of 3."
    )
    failed = member(4, State.FAILED, Outcome(end=End.FAILED, cause=Cause.NAN, metrics={"eval_loss": 0.1}))
    jobs = [
        member(1, State.QUEUED),
        done(2, eval_loss=2.0),
        failed,
        member(5, State.CANCELLED, early),
        done(3, eval_loss=1.5),
    ]
    made = table(SWEEP, jobs, lambda job: {})
    assert [row.job.id for row in made.rows] == ["3", "2", "4", "5", "1"]
    assert made.best is not None and (made.best.job.id, made.best.value) == ("3", 1.5)
    assert made.counts == {
        "queued": 1, "running": 0, "succeeded": 2, "failed": 1, "cancelled": 1, "stopped_early": 1,
    }  # fmt: skip


def test_a_sweep_without_a_goal_takes_the_loss_that_its_jobs_tell_and_the_given_goal_counts() -> None:
    jobs = [done(1, train_loss=2.0, accuracy=0.1, exit_code=0), done(2, train_loss=1.0, accuracy=0.0)]
    assert table(SWEEP, jobs, lambda job: {}).goal.metric == "train_loss"
    assert table(SWEEP, jobs, lambda job: {}).metrics == ["train_loss", "accuracy"]
    given_goal = SWEEP.model_copy(update={"goal": Goal(maximize="accuracy")})
    assert table(given_goal, jobs, lambda job: {}).best.job.id == "1"  # type: ignore[union-attr]


def test_numbers_that_are_none_and_texts_are_left_out() -> None:
    odd = done(1, eval_loss=float("nan"), train_loss=10**400, loss="low", score=True)
    made = table(SWEEP, [odd], lambda job: {})
    assert made.rows[0].metrics == {} and made.best is None
