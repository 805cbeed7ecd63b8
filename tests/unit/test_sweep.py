"""What a sweep's document means, and what is said about a wrong one."""

import importlib.util
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.expansion import Expansion, check, expand
from jobs.sampling import Range
from jobs.spec import InvalidSpec, parse

BASE = {"kind": "finetune", "model": "m", "data": "/d", "lora": {"r": 4, "lora_alpha": 8}}
COMMAND = {"kind": "command", "argv": ["train", "--lr", "1"], "env": {"A": "1"}}
SPACE = {"learning_rate": {"min": 1e-5, "max": 1e-3, "log": True}, "lora.r": [8, 16], "max_steps": {"min": 1, "max": 9}}


def swept(sweep: Any, base: Any = BASE, table: str = "") -> Expansion:
    return expand(base, sweep, read_csv=lambda name: table)


def refusal(sweep: Any, base: Any = BASE, table: str = "") -> list[tuple[str, str]]:
    with pytest.raises(InvalidSpec) as refused:
        swept(sweep, base, table)
    return [(error.field, error.message) for error in refused.value.errors]


def test_a_grid_is_every_combination_and_each_says_what_makes_it_different() -> None:
    found = swept({"learning_rate": [1e-4, 3e-4], "lora.r": [8, 16]})
    assert found.points[1] == {"learning_rate": 1e-4, "lora.r": 16}
    assert found.documents[1]["lora"] == {"r": 16, "lora_alpha": 8}
    assert found.documents[1]["name"] == "finetune m learning_rate=0.0001 lora.r=16"
    assert (len(found.documents), found.facts.method, found.facts.axes) == (4, "grid", ("learning_rate", "lora.r"))
    assert BASE["lora"] == {"r": 4, "lora_alpha": 8}


def test_the_long_form_of_a_grid_means_the_same_and_a_seed_may_be_swept() -> None:
    assert swept({"grid": {"seed": [1, 2]}}) == swept({"seed": [1, 2]})


def test_items_of_a_list_and_of_an_environment_can_be_swept() -> None:
    found = swept({"argv.2": [2, "3"], "env.B": ["x"]}, COMMAND)
    assert found.points[0] == {"argv.2": 2, "env.B": "x"}  # a program is given text, the table keeps the number
    assert [parse(document).argv for document in found.documents] == [("train", "--lr", "2"), ("train", "--lr", "3")]  # type: ignore[union-attr]
    assert found.documents[0]["env"] == {"A": "1", "B": "x"}
    assert COMMAND["argv"] == ["train", "--lr", "1"]


def test_a_random_sweep_is_the_same_for_the_same_seed_and_stays_in_its_space() -> None:
    sweep = {"space": SPACE, "samples": 200, "seed": 3}
    found = swept(sweep)
    assert found.points == swept(sweep).points != swept({**sweep, "seed": 4}).points
    assert all(1e-5 <= point["learning_rate"] <= 1e-3 for point in found.points)
    assert {point["max_steps"] for point in found.points} == set(range(1, 10))
    below = sum(point["learning_rate"] < 1e-4 for point in found.points)
    assert 70 < below < 130  # half of the decades
    assert all(parse(document) for document in found.documents)


@pytest.mark.skipif(importlib.util.find_spec("scipy") is None, reason="needs SciPy")
@pytest.mark.parametrize("sampler", ["sobol", "halton", "lhs"])
def test_a_sampler_of_scipys_spreads_evenly_and_repeats_itself(sampler: str) -> None:
    sweep = {"space": {"learning_rate": {"min": 0.5, "max": 1.0}}, "samples": 16, "sampler": sampler}
    found = swept(sweep)
    assert found.points == swept(sweep).points and found.facts.method == sampler
    parts = [math.floor((point["learning_rate"] - 0.5) * 16) for point in found.points]
    assert len(set(parts)) == 8  # two in each of eight parts, or nearly so: none is left empty


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.booleans(), st.floats(0, 1))
def test_a_range_of_whole_numbers_gives_whole_numbers_within_it(low: int, width: int, log: bool, unit: float) -> None:
    value = Range(low, low + width, log).at(unit)
    assert isinstance(value, int) and low <= value <= low + width


@given(st.floats(1e-9, 1e3), st.floats(1e-9, 1e3), st.booleans(), st.floats(0, 1))
def test_a_range_is_never_left(low: float, width: float, log: bool, unit: float) -> None:
    assert low <= Range(low, low + width, log).at(unit) <= low + width


def test_a_list_of_points_may_change_other_fields_in_each() -> None:
    found = swept({"points": [{"seed": 1}, {"seed": 2, "lora": {"r": 2}}, {"name": "mine"}]})
    assert found.facts.axes == ("seed", "lora", "name")
    assert found.documents[1]["lora"] == {"r": 2}
    assert found.documents[2]["name"] == "mine"


def test_a_table_has_a_head_json_or_text_in_its_cells_and_empty_ones_say_nothing() -> None:
    table = '\ufefflearning_rate, lora.r,model,tags\r\n1e-4,8,other,"[""a""]"\r\n\r\n,16,7,\r\n'
    found = swept({"csv": "t.csv"}, table=table)
    assert found.points == [
        {"learning_rate": 1e-4, "lora.r": 8, "model": "other", "tags": ["a"]},
        {"lora.r": 16, "model": 7},
    ]


@pytest.mark.parametrize(
    ("sweep", "field", "words"),
    [
        ({"learning_rte": [1]}, "sweep.learning_rte", "did you mean 'learning_rate'?"),
        ({"lora_r": [1]}, "sweep.lora_r", "did you mean 'lora.r'?"),
        ({"lora.rr": [1]}, "sweep.lora.rr", "did you mean 'lora.r'?"),
        ({"space": {"seeed": [1]}, "samples": 1}, "sweep.seeed", "did you mean 'seed'?"),
        ({"points": [{"max_stps": 1}]}, "sweep.max_stps", "did you mean 'max_steps'?"),
        ({"model.x": [1]}, "sweep.model.x", "not an object in the base"),
        ({}, "sweep", "names fields with their values"),
        ({"seed": 1}, "sweep.seed", "is a list of at least one value"),
        ({"sampels": 5}, "sweep.sampels", "did you mean 'samples'?"),
        ({"space": SPACE}, "sweep.samples", "field required"),
        ({"space": SPACE, "samples": 5, "sampler": "soboll"}, "sweep.sampler", "'sobol'"),
        ({"space": SPACE, "samples": 5, "sedd": 1}, "sweep.sedd", "did you mean 'seed'?"),
        ({"space": {"seed": {"min": 2, "max": 1}}, "samples": 1}, "sweep.space.seed", "min is less than max"),
        ({"space": {"seed": {"min": 0, "max": 1, "log": True}}, "samples": 1}, "sweep.space.seed", "greater than 0"),
        ({"space": {"seed": 5}, "samples": 1}, "sweep.space.seed", "is a list of values, or"),
        ({"grid": {"seed": [1]}, "points": [{"seed": 1}]}, "sweep", "is made in one way"),
        ({"seed": list(range(101)), "max_steps": list(range(100))}, "sweep", "makes 10100 jobs"),
        ({"seed": [1], "goal": "loss"}, "sweep.goal", 'as in {"minimize": "eval_loss"}'),
        ({"seed": [1], "goal": {"minimize": "a", "maximize": "b"}}, "sweep.goal", "names one metric"),
        ({"seed": [1], "halving": {}}, "sweep.halving.first_step", "field required"),
        ({"seed": [1], "halving": {"first_step": 5, "factr": 3}}, "sweep.halving.factr", "did you mean 'factor'?"),
        ({"seed": [1], "max_concurrent": 0}, "sweep.max_concurrent", "greater than"),
        ({"points": []}, "sweep.points", "at least one"),
        ({"points": [{}]}, "sweep.points.0", "at least one field"),
    ],
)
def test_a_wrong_sweep_is_told_with_its_field(sweep: Any, field: str, words: str) -> None:
    [(where, message)] = refusal(sweep)
    assert where == field and words in message


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("", "has no head"),
        ("seed\n", "no line below"),
        ("seed,seed\n1,2\n", "no field has two columns"),
        ("seed,max_steps\n1,2\n3\n", "line 3 has 1 cells, the head has 2"),
        ("seed\n" + "1\n" * 10_001, "makes 10001 jobs"),
    ],
)
def test_a_wrong_table_is_told_with_its_line(table: str, words: str) -> None:
    [(where, message)] = refusal({"csv": "t.csv"}, table=table)
    assert where in ("sweep.csv", "sweep") and words in message


def test_a_large_base_is_not_multiplied_without_bound() -> None:
    base = {**COMMAND, "env": {"TEXT": "x" * 500_000}}
    [(where, message)] = refusal({"env.A": list(range(1_000))}, base)
    assert where == "sweep" and "MiB of jobs" in message


def test_a_laptop_finds_a_wrong_sweep_without_drawing_or_reading() -> None:
    check(BASE, {"csv": "not there"})
    check(BASE, {"space": SPACE, "samples": 5, "sampler": "sobol"})
    with pytest.raises(InvalidSpec, match="did you mean 'learning_rate'"):
        check(BASE, {"space": {"learning_rte": [1]}, "samples": 5})


def test_a_wrong_value_is_told_where_the_sweep_says_it() -> None:
    found = swept({"lora.r": [8, -1]})
    assert found.field_of(1, "lora.r") == "sweep.lora.r"
    assert found.field_of(1, "seed") == "base.seed"
