"""Telemetry to take away: CSV and Parquet of a job or of any time, over HTTP and by the command."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from live_api import NOW, LiveApi
from starlette.testclient import TestClient

from api.cli import overnight
from daemon.export import COLUMNS
from daemon.recorder import Recorder
from daemon.samples import Identity, Sample, now_path, publish
from daemon.settings import Settings
from jobs.model import Job, State

AT = int(NOW)
ROW = {"util": 97, "mem_mib": 8192, "temp_c": 71, "power_mw": 345_000, "energy_mj": 10**9, "sm_mhz": 1695}


@pytest.fixture
def sampled(settings: Settings) -> Settings:
    """Two slots over two minutes; the last seconds are not in the database yet."""
    record(settings.home)
    return settings


def record(home: Path) -> None:
    recorder = Recorder(home)
    for slot in ("cpu:0", "cpu:1"):
        recorder.know(Identity(slot, "CPU"))
        for second in range(-60, 60):
            recorder.add(slot, Sample(AT + second, **ROW))
    recorder.save(now=AT + 60)
    recorder.add("cpu:1", Sample(AT + 60, state=2))
    publish(now_path(home), {"at": AT + 60, "source": "cpu", "problem": None, "slots": {}, "pid": 1, "unsaved": recorder.unsaved()})  # fmt: skip
    recorder.close()


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_jobs_csv_has_each_second_of_its_slots(
    sampled: Settings, client: TestClient, submit: Callable[..., str], brought: Callable[[str, State], Job]
) -> None:
    brought(submit(), State.SUCCEEDED)  # on cpu:1, from NOW + 1 to NOW + 10
    answer = client.get("/api/v1/jobs/1/telemetry/export")
    assert answer.headers["content-type"].startswith("text/csv")
    assert "job-1-telemetry.csv" in answer.headers["content-disposition"]
    found = rows_of(answer.text)
    assert [int(row["ts"]) for row in found] == list(range(AT + 1, AT + 10))
    assert {row["slot"] for row in found} == {"cpu:1"}
    assert (found[0]["power_mw"], found[0]["state"], found[0]["fan"]) == ("345000", "ok", "")


def test_any_time_may_be_taken_and_what_is_not_saved_yet_is_in_it(sampled: Settings, client: TestClient) -> None:
    answer = client.get("/api/v1/telemetry/export", params={"start": AT - 5, "end": AT + 100, "slot": "cpu:1"})
    found = rows_of(answer.text)
    assert [int(found[0]["ts"]), int(found[-1]["ts"])] == [AT - 5, AT + 60]
    assert found[-1]["state"] == "lost" and found[-1]["util"] == ""
    both = client.get("/api/v1/telemetry/export", params={"start": AT - 5, "end": AT})
    assert {row["slot"] for row in rows_of(both.text)} == {"cpu:0", "cpu:1"}


def test_parquet_holds_the_same_rows(sampled: Settings, client: TestClient, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    params = {"start": AT - 5, "end": AT + 100, "slot": "cpu:1"}
    answer = client.get("/api/v1/telemetry/export", params={**params, "format": "parquet"})
    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    (tmp_path / "t.parquet").write_bytes(answer.content)
    table = pq.read_table(tmp_path / "t.parquet")
    assert tuple(table.column_names) == COLUMNS
    as_text = [{name: "" if v is None else str(v) for name, v in row.items()} for row in table.to_pylist()]
    assert as_text == rows_of(client.get("/api/v1/telemetry/export", params=params).text)


def test_a_series_of_any_slot_has_about_so_many_points(sampled: Settings, client: TestClient) -> None:
    found = client.get("/api/v1/telemetry", params={"start": AT - 60, "end": AT + 60, "points": 60}).json()
    assert sorted(found["slots"]) == ["cpu:0", "cpu:1"]
    assert len(found["slots"]["cpu:0"]) == 60
    assert found["slots"]["cpu:0"][0]["power_mean_w"] == 345.0


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/telemetry/export?start=5&end=5", 422),
        ("/api/v1/telemetry/export?start=-1", 422),
        ("/api/v1/telemetry/export?start=nan", 422),
        ("/api/v1/telemetry/export?format=exe", 422),
        ("/api/v1/jobs/7/telemetry/export", 404),
    ],
)
def test_what_makes_no_sense_is_refused(client: TestClient, path: str, status: int) -> None:
    assert client.get(path).status_code == status


def test_a_job_that_never_ran_has_none(client: TestClient, submit: Callable[..., str]) -> None:
    assert client.get(f"/api/v1/jobs/{submit()}/telemetry/export").status_code == 404


def test_without_any_reading_the_file_has_a_head_only(client: TestClient) -> None:
    assert client.get("/api/v1/telemetry/export").text == ",".join(COLUMNS) + "\n"


def test_a_broken_database_is_told_before_the_file_begins(client: TestClient, settings: Settings) -> None:
    (settings.home / "telemetry.sqlite").write_bytes(b"not a database" * 100)
    assert client.get("/api/v1/telemetry/export").status_code == 503


def run(live: LiveApi, *args: str) -> Any:
    environment = {"OVERNIGHT_URL": live.url, "OVERNIGHT_TOKEN": live.token}
    return CliRunner(env=environment).invoke(overnight, ["telemetry", "export", *args])


def test_the_command_writes_the_file(live: LiveApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record(live.settings.home)
    since, until = "2026-11-18T00:00:00+00:00", "2026-11-19T00:00:00+00:00"
    done = run(live, "--since", since, "--until", until, "--slot", "cpu:0", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["file"] == "rig-telemetry.csv"
    assert len(rows_of((tmp_path / "rig-telemetry.csv").read_text())) == 120
    done = run(live, "--since", since, "--until", until, "-o", "night.parquet")
    assert done.exit_code == 0 and (tmp_path / "night.parquet").read_bytes()[:4] == b"PAR1"
    assert list(tmp_path.iterdir()).__len__() == 2  # no draft is left


def test_the_command_says_what_it_does_not_understand(live: LiveApi) -> None:
    assert "is no moment like" in run(live, "--since", "yesterday").output
    assert run(live, "--job", "1", "--since", "2h").exit_code == 2
    assert run(live, "--job", "999").exit_code == 5
