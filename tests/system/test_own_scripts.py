"""`submit run -- python train.py` from a laptop: its folder goes to the rig, runs there, and goes on after a kill."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from until import until

from api.cli import overnight, submit
from jobs.model import State
from jobs.rundir import read_json_lines

SCRIPT = """
import json, sys
from pathlib import Path
import overnight
import mine

state = {"step": 0}
overnight.load(lambda folder: state.update(json.loads((folder / "state.json").read_text())))
for step in range(state["step"] + 1, 21):
    overnight.log(step, 20, loss=mine.loss(step))
    overnight.save(step, lambda folder: (folder / "state.json").write_text(json.dumps({"step": step})))
    print("step", step, flush=True)
    if step == 10 and not overnight.resume:
        input_never_comes = Path("go")
        while not input_never_comes.exists():
            pass
(overnight.output_dir() / "answer.txt").write_text("42")
"""


class Laptop:
    """A folder of code, and somebody who types in it."""

    def __init__(self, folder: Path, rig: Any):
        self.folder, self._rig = folder, rig
        folder.mkdir()
        (folder / "train.py").write_text(SCRIPT)
        (folder / "mine.py").write_text("def loss(step):\n    return 1 / step\n")
        (folder / ".gitignore").write_text("big.bin\n")
        (folder / "big.bin").write_bytes(b"\0" * 100_000)
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)

    def overnight(self, *args: str) -> Result:
        return self._type(overnight, args, {})

    def submit(self, *args: str, **environment: str) -> Result:
        return self._type(submit, args, environment)

    def _type(self, command: Any, args: Sequence[str], environment: Mapping[str, str]) -> Result:
        where = {
            "OVERNIGHT_URL": self._rig.url,
            "OVERNIGHT_TOKEN": self._rig.token,
            "XDG_CONFIG_HOME": str(self.folder),
        }
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            return CliRunner(env={**where, **environment}).invoke(command, list(args))
        finally:
            os.chdir(before)

    def job(self, *args: str, **environment: str) -> str:
        result = self.submit("run", "--json", *args, **environment)
        assert result.exit_code == 0, result.output
        return str(json.loads(result.stdout)["id"])


#: Where the packages for tests put their programs.
PROGRAMS = Path(sys.executable).parent


@pytest.fixture
def rig(make_rig: Any) -> Any:
    return make_rig(environment={"PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"})


@pytest.fixture
def laptop(tmp_path: Path, rig: Any) -> Laptop:
    return Laptop(tmp_path / "project", rig)


def test_the_folder_goes_along_and_a_killed_script_goes_on(laptop: Laptop, rig: Any) -> None:
    job_id = laptop.job("--max-attempts", "3", "--", "python", "train.py")
    rig.until_printed(job_id, "step 10")
    folder = rig.folder(job_id)
    assert (folder.code / "mine.py").exists() and not (folder.code / "big.bin").exists()
    until(
        lambda: (told := rig.job(job_id).progress) and told.step == 10, evidence=rig.evidence
    )  # the page can tell how far it is
    os.kill(rig.child("cpu:0"), 9)
    job = rig.until_ended(job_id)
    assert job.state is State.SUCCEEDED, rig.evidence()
    assert [line["step"] for line in read_json_lines(folder.metrics)] == list(range(1, 21))
    assert (folder.output / "answer.txt").read_text() == "42"


def test_a_folder_that_has_not_changed_is_uploaded_once(laptop: Laptop, rig: Any) -> None:
    first, again = (laptop.job("--", "python", "-c", "pass", "train.py") for _ in range(2))
    assert rig.job(first).spec["workdir"] == rig.job(again).spec["workdir"]
    assert len(list(rig.settings.inputs.iterdir())) == 1


def test_a_program_that_is_not_in_the_folder_is_refused_at_once(laptop: Laptop) -> None:
    result = laptop.submit("run", "--workdir", ".", "--", "./big.bin")
    assert result.exit_code == 2 and "is it ignored by git?" in result.output


def test_too_much_is_told_with_its_largest_files_before_anything_is_sent(laptop: Laptop, rig: Any) -> None:
    (laptop.folder / "data.npz").write_bytes(b"\0" * 2_000_000)
    result = laptop.submit("run", "--", "python", "train.py", OVERNIGHT_WORKDIR_MAX_MB="1")
    assert result.exit_code == 2 and "The largest: data.npz" in result.output and ".gitignore" in result.output
    assert not rig.settings.inputs.exists() or not list(rig.settings.inputs.iterdir())


def test_a_command_that_names_no_file_of_the_folder_goes_alone(laptop: Laptop, rig: Any) -> None:
    assert rig.job(laptop.job("--", "true")).spec["workdir"] is None
    assert rig.job(laptop.job("--no-workdir", "--", "python", "train.py")).spec["workdir"] is None


def test_a_folder_with_a_lock_file_runs_in_its_own_environment(laptop: Laptop, rig: Any) -> None:
    (laptop.folder / "pyproject.toml").write_text(
        '[project]\nname = "mine"\nversion = "1"\nrequires-python = ">=3.11"\n'
    )
    subprocess.run([PROGRAMS / "uv", "lock", "--offline", "-q"], cwd=laptop.folder, check=True)
    (laptop.folder / "where.py").write_text("import sys; print('at', sys.prefix)\n")
    job = rig.until_ended(laptop.job("--env", "UV_OFFLINE=1", "--", "python", "where.py"))
    assert job.state is State.SUCCEEDED, rig.evidence()
    assert f"at {rig.folder(job.id).code / '.venv'}" in rig.log(job.id)


def test_the_same_again_is_told_and_can_be_held_to_what_it_was(laptop: Laptop, rig: Any) -> None:
    (laptop.folder / "quick.py").write_text("print('done')\n")
    first = rig.until_ended(laptop.job("--", "python", "quick.py"))
    said = laptop.submit("run", "--name", "again", "--", "python", "quick.py")
    assert f"You ran this before as job {first.id} (succeeded" in said.output
    again = laptop.overnight("rerun", first.id, "--exact", "--json")
    assert again.exit_code == 0, again.output
    assert rig.job(json.loads(again.stdout)["id"]).spec == first.spec
    told = json.loads(rig.folder(first.id).environment.read_text())
    rig.folder(first.id).environment.write_text(json.dumps({**told, "python": "2.7"}))
    refused = laptop.overnight("rerun", first.id, "--exact")
    assert refused.exit_code == 1 and "Python was 2.7" in refused.output and "Nothing was submitted" in refused.output
