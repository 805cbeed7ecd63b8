"""The best that is possible for a small night, from a solver that proves it (OR-tools CP-SAT)."""

from collections.abc import Mapping
from typing import Any

from rehearsal import Night, Task

#: One case may take so much work, whatever else the machine does; one that is not proven by then is left out.
LIMIT, LONGEST_S = 3.0, 60.0
RESERVE_BYTES = 512 << 20


def least_makespan_s(night: Night) -> float | None:
    """The earliest moment at which everything can have ended; None when it was not proven in time."""
    model, starts = _model(night)
    end = model.new_int_var(0, _horizon(night), "end")
    for task in night.tasks:
        model.add(end >= starts[task.number] + round(task.lasts_s))
    model.minimize(end)
    return _solve(model)


def least_waiting_s(
    night: Night, weights: Mapping[int, float], latest_s: Mapping[int, float] | None = None
) -> float | None:
    """The least weighted mean of waiting times. `latest_s`: nobody may start later than this."""
    model, starts = _model(night)
    for number, at_s in (latest_s or {}).items():
        model.add(starts[number] <= round(at_s))
    model.minimize(sum(round(weights[task.number]) * starts[task.number] for task in night.tasks))
    least_s = _solve(model)
    return None if least_s is None else least_s / sum(weights[task.number] for task in night.tasks)


def _model(night: Night) -> tuple[Any, dict[int, Any]]:
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    starts: dict[int, Any] = {}
    whole: dict[int, Any] = {}
    on_slot: dict[str, list[Any]] = {slot.id: [] for slot in night.slots}
    for task in night.tasks:
        length = round(task.lasts_s)
        starts[task.number] = start = model.new_int_var(0, _horizon(night), f"s{task.number}")
        whole[task.number] = model.new_fixed_size_interval_var(start, length, f"w{task.number}")
        _place(model, night, task, start, on_slot)
    for intervals in on_slot.values():
        model.add_no_overlap(intervals)
    # follows from the above, but the proof is shorter with it
    for memory_bytes in {slot.memory_bytes for slot in night.slots}:
        smaller = [slot for slot in night.slots if slot.memory_bytes < memory_bytes]
        demanding = [task for task in night.tasks if not any(_fits(task, slot.memory_bytes) for slot in smaller)]
        intervals, gpus = [whole[task.number] for task in demanding], [task.gpus for task in demanding]
        model.add_cumulative(intervals, gpus, len(night.slots) - len(smaller))
    return model, starts


def _place(model: Any, night: Night, task: Task, start: Any, on_slot: dict[str, list[Any]]) -> None:
    """The job is on as many of the cards that it fits as it needs."""
    there = []
    for slot in night.slots:
        if _fits(task, slot.memory_bytes):
            present = model.new_bool_var(f"p{task.number}{slot.id}")
            there.append(present)
            length, name = round(task.lasts_s), f"i{task.number}{slot.id}"
            on_slot[slot.id].append(model.new_optional_fixed_size_interval_var(start, length, present, name))
    model.add(sum(there) == task.gpus)


def _solve(model: Any) -> float | None:
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time = LIMIT
    solver.parameters.max_time_in_seconds = LONGEST_S
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 1
    return float(solver.objective_value) if solver.solve(model) == cp_model.OPTIMAL else None


def _horizon(night: Night) -> int:
    return sum(round(task.lasts_s) for task in night.tasks)


def _fits(task: Task, memory_bytes: int) -> bool:
    return not task.vram_bytes or task.vram_bytes + RESERVE_BYTES <= memory_bytes
