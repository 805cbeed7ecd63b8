"""progress.json may be anything: a command writes it."""

import json
import os
from pathlib import Path

import pytest

from jobs.model import Progress
from jobs.progress import read_progress


def test_what_a_recipe_tells_is_read(tmp_path: Path) -> None:
    told = {"fence": 3, "phase": "training", "step": 7, "total": 9, "eta_s": 2.5, "metrics": {"loss": 0.5}, "at": 1.0}
    (tmp_path / "p").write_text(json.dumps(told))
    progress = Progress(phase="training", step=7, total=9, eta_s=2.5, metrics={"loss": 0.5})
    assert read_progress(tmp_path / "p", fence=3) == (progress, 1.0)
    assert read_progress(tmp_path / "p", fence=4) is None


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 5000, '{"fence": 2}', "null"])
def test_what_is_no_word_of_this_attempt_counts_as_silence(tmp_path: Path, text: str) -> None:
    (tmp_path / "p").write_text(text)
    assert read_progress(tmp_path / "p", fence=3) is None


def test_words_out_of_form_do_no_harm(tmp_path: Path) -> None:
    told = {
        "fence": 3,
        "phase": ["\x1b[2J"],
        "step": "many",
        "total": -4,
        "eta_s": "soon",
        "metrics": {"loss": "low", "n": 1},
    }
    (tmp_path / "p").write_text(json.dumps(told))
    found = read_progress(tmp_path / "p", fence=3)
    assert found is not None
    assert (found[0].step, found[0].total, found[0].eta_s, dict(found[0].metrics)) == (0, 0, None, {"n": 1.0})
    assert "\x1b" not in found[0].phase


def test_a_pipe_in_its_place_stops_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    assert read_progress(tmp_path / "p", fence=3) is None
