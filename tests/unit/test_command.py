"""Commands as real, small processes: `python -m jobs` on a run folder, the program below it, and signals to both."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attempts import ROOT, exit_code, log, run_folder, start_cold
from until import until

from jobs.rundir import RunDir, read_json


def carry_out(path: Path, *argv: str, **fields: Any) -> tuple[int, dict[str, Any], RunDir]:
    paths = {"cwd": fields["cwd"]} if "cwd" in fields else {}
    folder = run_folder(path / "run", {"kind": "command", "argv": list(argv), **fields}, paths)
    code = exit_code(start_cold(folder))
    return code, read_json(folder.result) or {}, folder


def test_a_program_that_ends_well_has_succeeded(tmp_path: Path) -> None:
    code, result, folder = carry_out(tmp_path, "sh", "-c", "echo to stdout; echo to stderr >&2; echo made > here.txt")
    assert (code, result["end"], result["metrics"]) == (0, "succeeded", {"exit_code": 0})
    assert log(folder) == "to stdout\nto stderr\n"
    assert (folder.output / "here.txt").read_text() == "made\n"


def test_it_finds_what_it_needs_in_its_environment(tmp_path: Path) -> None:
    code, _, folder = carry_out(tmp_path, "sh", "-c", "env; cat", env={"MODE": "night; touch x"})
    lines = log(folder).splitlines()
    assert code == 0
    assert "MODE=night; touch x" in lines
    assert f"OVERNIGHT_OUTPUT_DIR={folder.output}" in lines
    assert f"OVERNIGHT_CHECKPOINT_DIR={folder.checkpoints}" in lines
    assert {"OVERNIGHT_JOB_ID=1", "OVERNIGHT_ATTEMPT=1", "OVERNIGHT_RESUME=0"} <= set(lines)


def test_it_runs_in_its_folder_and_what_ours_needs_does_not_reach_it(tmp_path: Path) -> None:
    (tmp_path / "helper_of_mine.py").write_text("print('found')")
    (tmp_path / "train.py").write_text("import helper_of_mine, os; print(os.environ.get('HF_HUB_OFFLINE'))")
    document = {"kind": "command", "argv": [sys.executable, "train.py"]}
    folder = run_folder(tmp_path / "run", document, {"cwd": tmp_path})
    assert exit_code(start_cold(folder, PYTHONSAFEPATH="1", PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1")) == 0
    assert log(folder) == "found\nNone\n"


def test_arguments_reach_it_as_they_are(tmp_path: Path) -> None:
    code, _, folder = carry_out(tmp_path, "printf", "%s|", "$(touch x)", "a b", "", "*")
    assert (code, log(folder)) == (0, "$(touch x)|a b||*|")


def test_a_program_that_fails_is_quoted_with_its_last_words(tmp_path: Path) -> None:
    code, result, _ = carry_out(tmp_path, "sh", "-c", "echo first; echo 'no such column: loss' >&2; exit 3")
    assert (code, result["cause"]) == (1, "user_error")
    assert result["message"].endswith("exited with status 3: no such column: loss")


def test_a_program_that_dies_of_a_signal_is_told_apart(tmp_path: Path) -> None:
    _, result, _ = carry_out(tmp_path, "sh", "-c", "kill -SEGV $$")
    assert result["cause"] == "signal"
    assert "killed by SIGSEGV, which Overnight did not send" in result["message"]


def test_a_program_may_ask_to_be_run_again(tmp_path: Path) -> None:
    code, result, _ = carry_out(tmp_path, "sh", "-c", "exit 75")
    assert (code, result["end"]) == (75, "interrupted")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["no-such-program"], "There is no command 'no-such-program' on the rig."),
        (["./notes.txt"], "'./notes.txt' is not executable."),
        (["./script"], "'./script' cannot be run: Exec format error."),
    ],
)
def test_a_program_that_cannot_be_started_is_bad_input(tmp_path: Path, argv: list[str], words: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "script").write_text("print('no first line')")
    (tmp_path / "script").chmod(0o755)
    code, result, _ = carry_out(tmp_path, *argv, cwd=str(tmp_path))
    assert (code, result["cause"], result["message"]) == (1, "bad_input", words)


def test_a_folder_that_is_gone_is_bad_input(tmp_path: Path) -> None:
    _, result, _ = carry_out(tmp_path, "true", cwd=str(tmp_path / "gone"))
    assert (result["cause"], result["hint"]) == ("bad_input", "Check cwd.")


def test_a_stop_is_passed_on_and_the_program_may_save(tmp_path: Path) -> None:
    script = "trap 'echo saved; exit 0' TERM; echo ready; while :; do sleep 0.01; done"
    folder = run_folder(tmp_path / "run", {"kind": "command", "argv": ["sh", "-c", script]}, {})
    process = start_cold(folder)
    until(lambda: "ready" in log(folder))
    process.send_signal(signal.SIGTERM)
    assert exit_code(process) == 75
    assert log(folder) == "ready\nsaved\n"
    assert (read_json(folder.result) or {})["end"] == "interrupted"


def test_a_stop_ends_a_program_that_does_not_listen(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", {"kind": "command", "argv": ["sh", "-c", "echo ready; exec sleep 60"]}, {})
    process = start_cold(folder)
    until(lambda: "ready" in log(folder))
    process.send_signal(signal.SIGTERM)
    assert exit_code(process) == 75


def test_the_next_attempt_knows_that_it_goes_on(tmp_path: Path) -> None:
    script = 'echo "resume=$OVERNIGHT_RESUME attempt=$OVERNIGHT_ATTEMPT"'
    folder = run_folder(tmp_path, {"kind": "command", "argv": ["sh", "-c", script]}, {}, resume=True, attempt=2)
    assert exit_code(start_cold(folder)) == 0
    assert log(folder) == "resume=1 attempt=2\n"


def test_the_state_of_its_code_is_written_down(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(code)]
    (code / "train.py").write_text("print(1)\n")
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    (code / "train.py").write_text("print(2)\n")
    _, _, folder = carry_out(tmp_path, "true", cwd=str(code))
    facts = (read_json(folder.environment) or {})["git"]
    assert (len(facts["commit"]), facts["branch"], facts["diff_cut"]) == (40, "main", False)
    assert "-print(1)\n+print(2)" in facts["diff"]


def test_secrets_of_the_environment_are_not_written_down(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", {"kind": "command", "argv": ["true"], "env": {"TOKEN": "hf_CANARY"}}, {})
    assert exit_code(start_cold(folder, WANDB_API_KEY="hf_CANARY")) == 0
    assert "hf_CANARY" not in folder.environment.read_text()


def test_a_command_starts_without_the_heavy_libraries() -> None:
    script = (
        "import jobs.command, sys; print(sorted({'torch', 'transformers', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
