"""Jobs of one batch that name each other."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.pipeline import PROVISIONAL, linked, numbered, place_of
from jobs.spec import InvalidSpec, parse


def errors(*documents: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidSpec) as refused:
        linked(documents)
    return [(error.field, error.message) for error in refused.value.errors]


def test_names_become_numbers_in_after_model_adapter_and_data_also_forward() -> None:
    [asking, train, gen] = linked(
        [
            {"model": "m", "adapter": "job:train", "data": "job:gen", "after": ["ended:gen", "7", "failed:7"]},
            {"id": "train"},
            {"id": "gen", "model": "job:train"},
        ]
    )
    assert (asking["adapter"], asking["data"]) == (f"job:{PROVISIONAL + 1}", f"job:{PROVISIONAL + 2}")
    assert asking["after"] == [f"ended:{PROVISIONAL + 2}", "7", "failed:7"]
    assert (train, gen) == ({}, {"model": f"job:{PROVISIONAL + 1}"})


def test_what_was_given_stays_as_it_was() -> None:
    document = {"id": "a", "after": ["b"]}
    linked([document, {"id": "b"}])
    assert document == {"id": "a", "after": ["b"]}


def test_provisional_numbers_become_those_that_the_queue_gives() -> None:
    documents = linked(
        [{"kind": "finetune", "id": "t", "model": "m", "data": "/d"}]
        + [{"kind": "generate", "model": "job:t", "data": "/d", "after": ["ended:t", "3"]}]
    )
    spec = numbered(parse(documents[1]), 41)
    assert (spec.dependencies, spec.model) == (("ended:41", "3", "41"), "job:41")  # type: ignore[union-attr]
    assert place_of(str(PROVISIONAL + 5)) == 5 and place_of("5") is None


@pytest.mark.parametrize(
    ("documents", "field", "words"),
    [
        ([{"id": "train"}, {"after": ["trian"]}], "jobs.1.after", "did you mean 'train'?"),
        ([{"after": ["train"]}], "jobs.0.after", "give it one: id ="),
        ([{"id": "a"}, {"model": "job:b"}], "jobs.1.model", "no job of this batch has the id 'b'"),
        ([{"id": "a"}, {"id": "a"}], "jobs.1.id", "'a' is the id of jobs.0 already"),
        ([{"id": "7"}], "jobs.0.id", "begins with a letter"),
        ([{"id": 7}], "jobs.0.id", "begins with a letter"),
        ([{"id": "ended:a"}], "jobs.0.id", "begins with a letter"),
        ([{"id": "a", "after": ["a"]}], "jobs.0.after", "waits for itself: a → a"),
        ([{"after": [str(PROVISIONAL)]}], "jobs.0.after", "there is no job"),
        (
            [{}, {"id": "a", "after": ["b"]}, {"id": "b", "model": "job:c"}, {"id": "c", "after": ["ended:a"]}],
            "jobs.1.after",
            "waits for itself: a → b → c → a",
        ),
    ],
)
def test_a_wrong_name_is_told_with_its_field(documents: list[Any], field: str, words: str) -> None:
    [(where, message)] = errors(*documents)
    assert where == field and words in message


@given(st.lists(st.lists(st.integers(0, 7), max_size=3), min_size=1, max_size=8))
def test_a_batch_is_refused_exactly_when_its_jobs_go_round_in_a_circle(waits: list[list[int]]) -> None:
    size = len(waits)
    waits = [[other % size for other in others] for others in waits]
    documents = [{"id": f"j{n}", "after": [f"j{other}" for other in others]} for n, others in enumerate(waits)]
    ready: set[int] = set()
    while fresh := {n for n in range(size) if n not in ready and ready.issuperset(waits[n])}:
        ready |= fresh
    try:
        linked(documents)
        assert len(ready) == size
    except InvalidSpec:
        assert len(ready) < size
