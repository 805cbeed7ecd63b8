"""metrics.jsonl as TensorBoard's own reader sees it."""

import math
import os
from pathlib import Path

import pytest

from jobs import tensorboard
from jobs.run import Order, Run
from jobs.rundir import RunDir, append_json_line, keep_json_lines


def folder(path: Path) -> RunDir:
    made = RunDir(path)
    made.create()
    return made


def run(made: RunDir, attempt: int = 1) -> Run:
    return Run(
        made, Order(job_id="1", attempt=attempt, fence=1, resume=attempt > 1, spec={}), now=lambda: 1_800_000_000.5
    )


def scalars(made: RunDir, tag: str) -> list[tuple[int, float]]:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulators.EventAccumulator(str(made.tensorboard))
    reader.Reload()
    return [(point.step, point.value) for point in reader.Scalars(tag)]


def test_the_checksum_is_crc32c_as_tfrecord_masks_it() -> None:
    crc = 0xE3069283  # of "123456789", the check value of CRC-32C
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert tensorboard._checksum(b"123456789") == masked.to_bytes(4, "little")


def test_every_number_of_every_step_comes_back_while_the_job_runs(tmp_path: Path) -> None:
    made = folder(tmp_path)
    recording = run(made)
    for step in range(1, 4):
        recording.metrics(step, loss=1 / step, learning_rate=2e-4, grad_norm=None)
    recording.metrics(3, eval_loss=0.25)
    assert scalars(made, "train/loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert scalars(made, "eval/loss") == [(3, 0.25)]


def test_a_resume_takes_back_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    made = folder(tmp_path)
    first = run(made)
    for step in range(1, 6):
        first.metrics(step, loss=float(step))
    keep_json_lines(made.metrics, lambda line: line["step"] <= 3)
    run(made, attempt=2).metrics(4, loss=40.0)
    assert scalars(made, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert len(list(made.tensorboard.iterdir())) == 1


def test_what_a_program_wrote_by_itself_is_read_as_it_can_be(tmp_path: Path) -> None:
    made = folder(tmp_path)
    for line in (
        {"step": 1, "acc/top-1 é": 0.5, "on": True, "note": "x"},
        {"loss": 1e300},
        {"step": -3, "loss": 2},
        {"step": "x", "time": None, "loss": 1},
    ):
        append_json_line(made.metrics, line)
    tensorboard.render(made, attempt=1)
    assert scalars(made, "train/acc/top-1 é") == [(1, 0.5)]
    assert [step for step, _ in scalars(made, "train/loss")] == [0, 0, 0]
    assert all(math.isfinite(value) for _, value in scalars(made, "train/loss"))


def test_files_that_a_program_wrote_for_itself_stay_alone(tmp_path: Path) -> None:
    made = folder(tmp_path)
    append_json_line(made.metrics, {"step": 1, "loss": 1.0})
    made.tensorboard.mkdir()
    (own := made.tensorboard / "events.out.tfevents.1800000000.rig.1.0").write_bytes(b"theirs")
    tensorboard.render(made, attempt=1)
    assert list(made.tensorboard.iterdir()) == [own] and own.read_bytes() == b"theirs"


def test_a_program_without_metrics_leaves_no_file(tmp_path: Path) -> None:
    made = folder(tmp_path)
    tensorboard.render(made, attempt=1)
    assert not made.tensorboard.exists()


@pytest.mark.parametrize("hostile", ['"loss":1' + "0" * 400, '"\\ud800":1.0', '"deep":' + "[" * 100_000])
def test_no_line_of_a_program_costs_it_its_result(tmp_path: Path, hostile: str) -> None:
    made = folder(tmp_path)
    made.metrics.write_text(f'{{"step":1,{hostile}}}\n{{"step":2,"acc":0.5}}\n')
    tensorboard.render(made, attempt=1)
    assert scalars(made, "train/acc") == [(2, 0.5)]


def test_a_pipe_for_metrics_and_a_file_in_the_folders_place_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = folder(tmp_path / "pipe")
    os.mkfifo(made.metrics)
    tensorboard.render(made, attempt=1)
    made = folder(tmp_path / "file")
    append_json_line(made.metrics, {"step": 1, "loss": 1.0})
    made.tensorboard.write_text("theirs")
    tensorboard.render(made, attempt=1)
    assert made.tensorboard.read_text() == "theirs"
    assert "TensorBoard's file of this job is not written: File exists." in capsys.readouterr().out
