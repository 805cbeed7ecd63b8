"""Only a whole checkpoint counts: every kind of damage that a crash can do is done here."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import checkpoints

FILES = {
    "adapter_model.safetensors": b"w" * 5000,
    "adapter_config.json": b"{}",
    "optimizer.pt": b"o" * 3000,
    "scheduler.pt": b"s" * 100,
    "rng_state.pth": b"r" * 100,
}


def save(folder: Path, step: int) -> Path:
    """A sealed checkpoint, as the trainer leaves one."""
    draft = checkpoints.drafts(folder) / f"checkpoint-{step}"
    draft.mkdir()
    for name, content in FILES.items():
        (draft / name).write_bytes(content)
    (draft / "adapter_model.safetensors").chmod(0o600)
    (draft / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return checkpoints.seal(draft, folder, step)


def zero_tail(checkpoint: Path) -> None:
    path = checkpoint / "adapter_model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size // 2)
    os.truncate(path, size)


def truncated(checkpoint: Path) -> None:
    os.truncate(checkpoint / "optimizer.pt", 10)


def without_optimizer(checkpoint: Path) -> None:
    (checkpoint / "optimizer.pt").unlink()


def without_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


def half_a_manifest(checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    path.write_text(path.read_text()[:50])


def manifest_that_forgets_the_scheduler(checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["files"]["scheduler.pt"]
    path.write_text(json.dumps(manifest))
    (checkpoint / "scheduler.pt").unlink()


def pickle_smuggled_in(checkpoint: Path) -> None:
    (checkpoint / "pytorch_model.bin").write_bytes(b"evil")


def state_of_another_step(checkpoint: Path) -> None:
    other = checkpoint.with_name("step-000009")
    checkpoint.rename(other)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (zero_tail, "adapter_model.safetensors has the wrong checksum"),
        (truncated, "optimizer.pt has the wrong size"),
        (without_optimizer, "optimizer.pt is missing"),
        (without_manifest, "no readable manifest"),
        (half_a_manifest, "no readable manifest"),
        (manifest_that_forgets_the_scheduler, "no scheduler.pt"),
        (pickle_smuggled_in, "pytorch_model.bin does not belong to it"),
        (state_of_another_step, "trainer_state.json is of step 4"),
    ],
)
def test_a_broken_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    good = save(tmp_path, 2)
    damage(save(tmp_path, 4))
    lines: list[str] = []
    assert checkpoints.newest_whole(tmp_path, say=lines.append) == good
    assert len(lines) == 1
    assert said in lines[0]


def test_the_newest_whole_one_is_taken_without_a_word(tmp_path: Path) -> None:
    save(tmp_path, 9)
    newest = save(tmp_path, 10)
    lines: list[str] = []
    assert checkpoints.newest_whole(tmp_path, say=lines.append) == newest
    assert lines == []


def test_nothing_is_found_where_nothing_is_whole(tmp_path: Path) -> None:
    assert checkpoints.newest_whole(tmp_path) is None
    zero_tail(save(tmp_path, 3))
    assert checkpoints.newest_whole(tmp_path, say=lambda _: None) is None


def test_a_draft_is_no_checkpoint_and_is_gone_at_the_next_start(tmp_path: Path) -> None:
    draft = checkpoints.drafts(tmp_path) / "checkpoint-5"
    draft.mkdir()
    (draft / "optimizer.pt").write_bytes(b"half")
    assert checkpoints.newest_whole(tmp_path) is None
    assert list(checkpoints.drafts(tmp_path).iterdir()) == []


def test_an_incomplete_draft_is_not_sealed(tmp_path: Path) -> None:
    draft = checkpoints.drafts(tmp_path) / "checkpoint-5"
    draft.mkdir()
    (draft / "adapter_model.safetensors").write_bytes(b"w")
    with pytest.raises(ValueError, match=r"the draft of step 5 has no optimizer\.pt"):
        checkpoints.seal(draft, tmp_path, 5)
    assert checkpoints.sealed(tmp_path) == []


def test_a_sealed_file_can_be_read_by_everybody_on_the_rig(tmp_path: Path) -> None:
    assert (save(tmp_path, 1) / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o644


def test_the_same_step_can_be_sealed_again(tmp_path: Path) -> None:
    zero_tail(save(tmp_path, 4))
    again = save(tmp_path, 4)
    assert checkpoints.what_is_wrong(again) is None
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["step-000004"]


def test_two_are_kept_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    checkpoints.prune(tmp_path, keep=2, best=2)
    assert [checkpoints.step_of(path) for path in checkpoints.sealed(tmp_path)] == [2, 4, 5]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (1_000_000, 999_999):
        save(tmp_path, step)
    newest = checkpoints.newest_whole(tmp_path)
    assert newest is not None
    assert checkpoints.step_of(newest) == 1_000_000


def test_what_went_astray_is_discarded(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step)
    checkpoints.discard_after(tmp_path, 4)
    assert [checkpoints.step_of(path) for path in checkpoints.sealed(tmp_path)] == [2, 4]


def test_a_fresh_start_removes_what_was_there_and_notes_what_it_is(tmp_path: Path) -> None:
    save(tmp_path, 2)
    checkpoints.start_over(tmp_path, {"model": "m", "learning_rate": 0.1})
    assert checkpoints.sealed(tmp_path) == []
    assert checkpoints.origin(tmp_path) == {"model": "m", "learning_rate": 0.1}


def test_the_space_that_is_still_needed_counts_what_is_there(tmp_path: Path) -> None:
    one = checkpoints.expected_bytes([(1_000_000, 4), (500_000, 2)])
    assert one == 3 * (4_000_000 + 1_000_000) + checkpoints.OTHER_FILES_BYTES
    assert checkpoints.needed_bytes(tmp_path, one) == 5 * one
    there = sum(path.stat().st_size for path in save(tmp_path, 10).iterdir())
    assert checkpoints.needed_bytes(tmp_path, one) == 5 * one - there
    assert checkpoints.needed_bytes(tmp_path, 1) == 1  # never less than the next one
