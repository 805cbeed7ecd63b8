"""The same work, and what has changed since it ran."""

from typing import Any

from jobs.repeat import changes, fingerprint
from jobs.spec import dump, parse


def spec(**fields: Any) -> dict[str, Any]:
    return dump(parse({"kind": "finetune", "model": "m", "data": "sha256:" + "a" * 64, **fields}))


def test_a_name_a_tag_and_an_hour_make_no_other_work() -> None:
    assert fingerprint(spec()) == fingerprint(
        spec(name="again", tags=["x"], priority="high", window="any", max_attempts=9)
    )


def test_another_seed_is_other_work() -> None:
    assert len({fingerprint(spec(seed=seed)) for seed in range(3)}) == 3


THEN = {
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "trl": "1.16.0"},
    "gpu": {"devices": ["RTX 3090"], "driver": "570.1", "cudnn": 9},
    "inputs": {"data": "a" * 64},
    "git": {"commit": "c" * 40, "diff": ""},
}


def test_nothing_has_changed() -> None:
    assert [*changes(THEN, THEN)] == []
    assert [*changes(THEN, {**THEN, "gpu": {"devices": ["RTX 3090", "RTX 3090"], "driver": "570.1"}})] == []


def test_every_change_is_told_in_words() -> None:
    now = {
        "python": "3.12.1",
        "packages": {"torch": "2.13.0", "trl": "1.17.0"},
        "gpu": {"devices": None, "driver": "580.2"},
        "inputs": {"data": "b" * 64},
        "git": {"commit": "c" * 40, "diff": "+print()"},
    }
    assert [*changes(THEN, now)] == [
        "Python was 3.11.7 and is 3.12.1",
        "trl was 1.16.0 and is 1.17.0",
        "the GPU was RTX 3090 and is gone",
        "the driver was 570.1 and is 580.2",
        "the content of data was aaaaaaaaaaaa… and is bbbbbbbbbbbb…",
        "the changes that are not committed are others",
    ]


def test_a_description_that_a_job_has_spoilt_does_no_harm() -> None:
    assert [*changes({"packages": 3, "gpu": [], "inputs": "x", "git": None}, THEN)] == []
