"""A benchmark's cells by themselves: their order, what one says of the next, the numbers that stand for all, the tables."""

import json
from typing import Any

import pytest

from api.benchmark_panel import rows_of
from jobs.cells import (
    DOES_NOT_FIT,
    NOT_RUN,
    Cell,
    Timing,
    cell_of,
    is_row,
    least_s,
    measured_row,
    metrics,
    plan,
    unmeasured_row,
)
from jobs.cells.table import HEAD, markdown, tables, texts
from jobs.direction import direction
from jobs.spec import InvalidSpec, dump, parse


def spec(**fields: Any) -> dict[str, Any]:
    return dump(parse({"kind": "benchmark", "model": "m", **fields}))


def cell(batch: int = 1, prompt: int = 128, dtype: str = "bfloat16", quantization: str = "none") -> Cell:
    return Cell(dtype=dtype, quantization=quantization, batch_size=batch, prompt_length=prompt)


def row(one: Cell, *, first_s: float = 0.5, between_s: float = 0.02, energy_j: float | None = None) -> dict[str, Any]:
    timing = Timing(first_token_s=first_s, between_s=[between_s] * 99)
    return measured_row(one, [timing, timing], {"peak_rss_bytes": 2**30}, energy_j)


def test_every_cell_is_planned_once_and_the_smallest_first() -> None:
    document = spec(batch_sizes=[8, 1], prompt_lengths=[1024, 128], dtypes=["auto", "bfloat16"], quantizations=["none", "nf4"])  # fmt: skip
    variants = plan(document, auto="bfloat16")

    assert [members[0].variant for members in variants] == [("bfloat16", "none"), ("bfloat16", "nf4")]
    assert [(c.batch_size, c.prompt_length) for c in variants[0]] == [(1, 128), (8, 128), (1, 1024), (8, 1024)]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"batch_sizes": [1, 1]}, "batch_sizes"),
        ({"batch_sizes": [0]}, "batch_sizes.0"),
        ({"prompt_lengths": []}, "prompt_lengths"),
        ({"quantizations": ["q4"]}, "quantizations.0"),
        ({"batch_sizes": list(range(1, 33)), "prompt_lengths": list(range(1, 33))}, "batch_sizes"),
    ],
)
def test_lists_that_make_no_sense_are_refused_where_they_stand(fields: dict[str, Any], wrong: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        spec(**fields)
    assert wrong in [error.field for error in refused.value.errors]


def test_a_cell_is_larger_only_when_it_is_in_every_way() -> None:
    assert cell(8, 1024).at_least(cell(8, 128))
    assert not cell(8, 128).at_least(cell(1, 1024))
    assert not cell(8, 1024, quantization="nf4").at_least(cell(8, 128))


def test_the_decode_rate_holds_no_prefill_and_the_prefill_rate_no_decode() -> None:
    found = row(cell(4, 1000), first_s=2.0, between_s=0.05)

    assert found["prefill_tokens_per_s"] == pytest.approx(4 * 1000 / 2.0)
    assert found["decode_tokens_per_s"] == pytest.approx(4 / 0.05)
    assert found["inter_token_latency_s"] == pytest.approx(0.05)
    assert (found["new_tokens"], found["repeats"]) == (100, 2)


def test_the_median_and_the_spread_of_the_repeats_are_told() -> None:
    timings = [Timing(first_token_s=n / 10, between_s=[n / 100] * 10) for n in (1, 2, 9)]
    found = measured_row(cell(), timings, {}, None)

    assert (found["ttft_s"], found["ttft_min_s"], found["ttft_max_s"]) == (0.2, 0.1, 0.9)
    assert found["decode_tokens_per_s"] == pytest.approx(50)
    assert found["decode_min_tokens_per_s"] == pytest.approx(100 / 9)
    assert found["decode_max_tokens_per_s"] == pytest.approx(100)


def test_energy_is_of_the_whole_request_for_each_new_token() -> None:
    assert row(cell(4), energy_j=800.0)["joules_per_token"] == pytest.approx(800 / (4 * 100 * 2))
    assert row(cell(4))["joules_per_token"] is None
    # an interval that the counter is too coarse for
    assert row(cell(4), first_s=0.01, between_s=0.001, energy_j=80.0)["joules_per_token"] is None


def test_how_long_a_cell_takes_at_least_is_told_by_its_neighbour() -> None:
    known = [row(cell(1, 100), first_s=0.1, between_s=0.02), unmeasured_row(cell(1, 10_000), NOT_RUN, "why")]

    assert least_s(cell(10, 100), known, 2, 50) == pytest.approx(2 * (1.0 + 50 * 0.02))
    assert least_s(cell(10, 100, quantization="nf4"), known, 2, 50) == pytest.approx(2 * (1.0 + 50 * 0.02))
    assert least_s(cell(), [], 2, 50) is None


def test_a_few_numbers_stand_for_the_whole() -> None:
    rows = [
        row(cell(1, 128), first_s=0.1, between_s=0.02, energy_j=400.0),
        row(cell(8, 128), first_s=0.4, between_s=0.025, energy_j=800.0),
        row(cell(1, 1024), first_s=0.9, between_s=0.03),
        row(cell(8, 128, quantization="nf4"), between_s=0.05),
        unmeasured_row(cell(8, 1024), DOES_NOT_FIT, "the memory ran out"),
    ]
    found = metrics(rows)

    assert (found["decode_tokens_per_s"], found["best_batch_size"], found["best_precision"]) == (320, 8, "bfloat16")
    assert found["prefill_tokens_per_s"] == pytest.approx(8 * 128 / 0.4)
    assert (found["ttft_s"], found["inter_token_latency_s"], found["single_decode_tokens_per_s"]) == (0.1, 0.02, 50)
    assert (found["cells"], found["cells_measured"], found["cells_not_fitting"]) == (5, 4, 1)
    assert (found["bfloat16_decode_tokens_per_s"], found["bfloat16_nf4_decode_tokens_per_s"]) == (320, 160)
    assert found["joules_per_token"] == 0.5
    assert metrics(rows[-1:]) == {"cells": 1, "cells_measured": 0}


def test_comparisons_know_which_way_each_is_better() -> None:
    ways = {name: direction(name) for name in ("decode_tokens_per_s", "ttft_s", "inter_token_latency_s", "joules_per_token", "bfloat16_nf4_decode_tokens_per_s", "best_batch_size")}  # fmt: skip
    assert list(ways.values()) == ["higher", "lower", "lower", "lower", "higher", None]


def test_the_table_has_a_part_for_each_precision_and_reasons_below() -> None:
    rows = [
        row(cell(8)),
        row(cell(1), energy_j=123.0),
        unmeasured_row(cell(8, 1024), DOES_NOT_FIT, "the memory ran out"),
        unmeasured_row(cell(32, 1024), DOES_NOT_FIT, "a smaller one did not"),
        *(unmeasured_row(cell(n, dtype="float16"), NOT_RUN, "no such unit") for n in (1, 8)),
    ]
    first, second = tables(rows)

    assert (first.variant, [texts[:2] for texts in first.rows]) == ("bfloat16", [["1", "128"], ["8", "128"]])
    assert list(first.notes) == ["8 x 1024 does not fit: the memory ran out", "32 x 1024 does not fit: a smaller one did not"]  # fmt: skip
    assert (second.variant, second.rows, second.notes) == ("float16", [], ["not run: no such unit"])
    page = markdown("How it runs", ["- model: m"], rows)
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1, page
    assert "## float16" in page and "- not run: no such unit" in page
    assert len(texts(rows[0])) == len(HEAD)


def test_what_a_job_left_is_shown_only_where_it_is_a_row() -> None:
    good = row(cell())
    bad: list[Any] = [
        "{", "[]", "null", json.dumps({**good, "ttft_s": "1"}), json.dumps({**good, "batch_size": "x"}), json.dumps({"state": "measured"}),
        json.dumps({**good, "decode_tokens_per_s": 1e400}), json.dumps({**unmeasured_row(cell(), NOT_RUN, "x"), "reason": 3}), "[" * 10_000,
    ]  # fmt: skip
    assert rows_of(bad) == []
    for name in ("batch_size", "prompt_length", "peak_reserved_bytes", "dtype", "state"):
        hostile: list[Any] = [1e999, [], {}] + [10**400, "8"] * (name != "dtype" and name != "state")
        assert rows_of([json.dumps({**good, name: value}) for value in hostile]) == [], name
    assert not is_row({})
    again = good | {"ttft_s": 0.25}
    assert rows_of([json.dumps(good), *bad, json.dumps(again)]) == [again]
    assert cell_of(again) == cell()
