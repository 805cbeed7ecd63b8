"""The watchdog tells a hang from a slow job."""

from jobs.model import Progress
from workers.watchdog import Watchdog


def beats(watchdog: Watchdog, phase: str, start: float, step_s: float, count: int) -> float:
    now = start
    for step in range(count):
        now = start + step * step_s
        watchdog.saw(Progress(phase=phase, step=step, total=1000), now, now)
    return now


def test_before_its_first_word_a_job_has_time_to_load() -> None:
    watchdog = Watchdog(10.0, 0.0)
    assert watchdog.hung(59.0) is None
    assert "starting" in (watchdog.hung(61.0) or "")


def test_a_steady_step_is_measured_against_its_own_history() -> None:
    slow, fast = Watchdog(10.0, 0.0), Watchdog(10.0, 0.0)
    end = beats(slow, "training", 0.0, 5.0, 10)
    assert slow.budget_s == 50.0 and slow.hung(end + 49.0) is None and slow.hung(end + 51.0)
    end = beats(fast, "training", 0.0, 0.1, 10)
    assert fast.budget_s == 10.0 and "step 9" in (fast.hung(end + 11.0) or "")


def test_saving_and_evaluating_are_slow_phases() -> None:
    watchdog = Watchdog(10.0, 0.0)
    end = beats(watchdog, "training", 0.0, 0.1, 10)
    watchdog.saw(Progress(phase="saving", step=9, total=10), "later", end)
    assert watchdog.hung(end + 59.0) is None and watchdog.hung(end + 61.0)


def test_the_same_word_again_is_no_sign_of_life() -> None:
    watchdog = Watchdog(10.0, 0.0)
    word = Progress(phase="training", step=1, total=10)
    for now in range(100):
        watchdog.saw(word, "same", float(now))
    assert watchdog.hung(99.0)
