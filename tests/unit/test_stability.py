"""When a training has gone astray, and when it only had a bad batch."""

import math
import random

from jobs.stability import ASTRAY_STEPS, LossWatch

VOCABULARY = 49_152
GUESSING = math.log(VOCABULARY)


def verdicts(watch: LossWatch, *steps: tuple[float, float]) -> list[str | None]:
    return [watch.look(loss, norm) for loss, norm in steps]


def test_a_noisy_training_that_learns_is_left_alone() -> None:
    chance = random.Random(7)
    watch = LossWatch(VOCABULARY)
    for step in range(500):
        loss = 1 + 4 * math.exp(-step / 50) + chance.uniform(-0.8, 0.8)
        assert watch.look(loss, chance.uniform(0.1, 3)) is None
    assert watch.suspects == 0


def test_two_losses_in_a_row_that_are_no_numbers_end_it() -> None:
    first, second = verdicts(LossWatch(VOCABULARY), (math.nan, 1.0), (math.inf, 1.0))
    assert first is None
    assert second is not None
    assert "not a number" in second


def test_one_bad_batch_does_not_end_it_but_is_suspect() -> None:
    watch = LossWatch(VOCABULARY)
    assert watch.look(math.nan, 1.0) is None
    assert watch.suspects == 1
    assert watch.look(2.0, 1.0) is None
    assert watch.suspects == 0


def test_a_gradient_that_is_no_number_counts_as_well() -> None:
    assert verdicts(LossWatch(VOCABULARY), (2.0, math.nan), (2.0, math.nan))[-1] is not None


def test_a_loss_frozen_at_guessing_ends_it() -> None:
    found = verdicts(LossWatch(VOCABULARY), (2.0, 1.0), *[(GUESSING, 0.5)] * ASTRAY_STEPS)
    assert found[:-1] == [None] * ASTRAY_STEPS
    assert found[-1] is not None
    assert "the best was 2.000" in found[-1]


def test_no_gradient_for_long_ends_it() -> None:
    found = verdicts(LossWatch(VOCABULARY), *[(2.0, 0.0)] * ASTRAY_STEPS)
    assert found[:-1] == [None] * (ASTRAY_STEPS - 1)
    assert found[-1] is not None


def test_a_model_that_starts_worse_than_guessing_may_learn() -> None:
    assert not any(verdicts(LossWatch(VOCABULARY), *[(25.0, 5.0)] * 20))


def test_the_memory_goes_on_in_the_next_attempt() -> None:
    watch = LossWatch(VOCABULARY)
    verdicts(watch, *[(2.0, 1.0)] * 10)
    later = LossWatch(VOCABULARY)
    later.recall(watch.memory())
    assert verdicts(later, *[(GUESSING, 1.0)] * ASTRAY_STEPS)[-1] is not None
