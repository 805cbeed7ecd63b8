"""`overnight report` against a real API."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from live_api import COMMAND, LiveApi

from api.cli import overnight


@pytest.fixture(scope="module")
def worked(live: LiveApi) -> LiveApi:
    """A rig on which a job with a name that would steer a terminal has just ended."""
    with live.client() as client:
        job_id = client.post("/api/v1/jobs", json={**COMMAND, "name": "[bold]red[/bold] ünï"}).json()["id"]
        client.post(f"/api/v1/jobs/{job_id}/cancel")
    return live


def run(live: LiveApi, *args: str) -> Result:
    environment = {"OVERNIGHT_URL": live.url, "OVERNIGHT_TOKEN": live.token}
    return CliRunner().invoke(overnight, ["report", *args], env=environment)


def test_it_prints_markdown_and_json(worked: LiveApi) -> None:
    printed = run(worked)
    assert printed.exit_code == 0, printed.output
    assert printed.stdout.startswith("# Night of ")
    told = json.loads(run(worked, "--json").stdout)
    assert told["rig"] == "rig" and told["verdict"]["sentence"]


def test_a_file_is_written_in_the_form_that_its_name_says(worked: LiveApi, tmp_path: Path) -> None:
    for name, begins in {"n.html": "<!doctype html>", "n.md": "# Night", "n.json": "{", "n.txt": ""}.items():
        assert run(worked, "-o", str(tmp_path / name)).exit_code == 0
        assert (tmp_path / name).read_text().startswith(begins)
    assert len((tmp_path / "n.txt").read_bytes()) <= 400


def test_hours_of_ones_own_and_what_cannot_be_read(worked: LiveApi) -> None:
    assert run(worked, "--since", "3h", "--format", "text").exit_code == 0
    for wrong in (["--night", "yesterday"], ["--night", "2026-11-21", "--since", "3h"], ["--since", "soon"]):
        assert run(worked, *wrong).exit_code == 2
    assert run(worked, "--night", "2999-01-01").exit_code == 5
