"""What a job leaves, over HTTP: log, metrics, telemetry, files, archive; and uploads."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live_api import NOW
from starlette.testclient import TestClient

from api.app import create_app
from daemon.recorder import Recorder
from daemon.samples import Identity, Sample
from daemon.settings import Settings
from daemon.store import Store
from jobs.model import Job, State
from jobs.rundir import RunDir

JOB = "/api/v1/jobs/1"
INPUTS = "/api/v1/inputs"
Submit = Callable[..., str]
FolderOf = Callable[[str], RunDir]


@pytest.fixture
def folder(submit: Submit, folder_of: FolderOf) -> RunDir:
    """The run folder of job 1."""
    return folder_of(submit())


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -- the log ------------------------------------------------------------------------------------------------------------


def test_the_log_of_a_job_that_has_not_begun_is_empty(client: TestClient, submit: Submit) -> None:
    submit()

    answer = client.get(f"{JOB}/log")

    assert (answer.status_code, answer.content, answer.headers["Overnight-Log-End"]) == (200, b"", "0")


def test_the_log_comes_whole_in_parts_or_from_its_end(client: TestClient, folder: RunDir) -> None:
    text = "".join(f"line {n} ü\n" for n in range(50_000))
    folder.log.write_text(text)
    size = len(text.encode())

    whole = client.get(f"{JOB}/log")
    part = client.get(f"{JOB}/log", headers={"Range": "bytes=10-19"})
    rest = client.get(f"{JOB}/log", headers={"Range": f"bytes={size - 5}-"})
    last = client.get(f"{JOB}/log", params={"tail": 2})

    assert (whole.text, whole.headers["Overnight-Log-End"]) == (text, str(size))
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    assert (part.status_code, part.content) == (206, text.encode()[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{size}"
    assert rest.content == text.encode()[-5:]
    assert last.text == "line 49998 ü\nline 49999 ü\n"


@pytest.mark.parametrize(("wanted", "status"), [("bytes=99-", 416), ("bytes=-2", 206), ("bytes=5-1", 200), ("x", 200)])
def test_ranges_follow_the_standard(client: TestClient, folder: RunDir, wanted: str, status: int) -> None:
    folder.log.write_text("0123456789")

    assert client.get(f"{JOB}/log", headers={"Range": wanted}).status_code == status


def test_the_tail_of_a_log_without_line_breaks_is_bounded(client: TestClient, folder: RunDir) -> None:
    folder.log.write_bytes(b"x" * 20_000_000)

    assert 0 < len(client.get(f"{JOB}/log", params={"tail": 5}).content) < 20_000_000


# -- metrics and telemetry ----------------------------------------------------------------------------------------------


def test_metrics_are_rows_and_can_be_continued(client: TestClient, folder: RunDir) -> None:
    folder.metrics.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\nnot json\n{"step": 3, "los')

    assert client.get(f"{JOB}/metrics").json() == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}]
    assert client.get(f"{JOB}/metrics", params={"since_step": 1}).json() == [{"step": 2, "loss": None}]
    assert client.get(f"{JOB}/metrics", params={"limit": 1}).json() == [{"step": 1, "loss": 2.0}]


def test_telemetry_shows_what_the_jobs_slots_did_while_it_ran(
    client: TestClient, submit: Submit, brought: Callable[[str, State], Job], settings: Settings
) -> None:
    recorder = Recorder(settings.home)
    recorder.know(Identity("cpu:1", "CPU slot 1"))
    for second in range(10):
        recorder.add("cpu:1", Sample(int(NOW) + second, util=50))
    recorder.save(now=NOW + 10)
    recorder.close()
    brought(submit(), State.SUCCEEDED)

    answer = client.get(f"{JOB}/telemetry").json()

    assert list(answer["slots"]) == ["cpu:1"]
    assert {point["utilization_mean"] for point in answer["slots"]["cpu:1"]} == {0.5}
    assert answer["start"] <= answer["slots"]["cpu:1"][0]["at"] < answer["end"]


def test_telemetry_of_a_job_that_never_ran_is_empty(client: TestClient, submit: Submit) -> None:
    submit()

    assert client.get(f"{JOB}/telemetry").json() == {"start": None, "end": None, "slots": {}}


# -- files --------------------------------------------------------------------------------------------------------------


def test_files_are_listed_with_their_sizes_and_fetched_by_their_paths(client: TestClient, folder: RunDir) -> None:
    (folder.output / "deep").mkdir()
    (folder.output / "deep" / "a b ü.bin").write_bytes(b"12345")
    folder.log.write_text("hello")

    listed = client.get(f"{JOB}/files").json()

    assert [(file["path"], file["size_bytes"]) for file in listed["files"]] == [
        ("log.txt", 5),
        ("output/deep/a b ü.bin", 5),
    ]
    answer = client.get(f"{JOB}/files/output/deep/a b ü.bin")
    assert answer.content == b"12345"
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="a b _.bin"; filename*=UTF-8')
    assert client.get(f"{JOB}/files/output/deep").status_code == 404


def test_the_archive_is_a_tar_of_every_regular_file(client: TestClient, folder: RunDir) -> None:
    (folder.output / ("n" * 150)).write_bytes(b"x" * 1000)
    (folder.output / "link").symlink_to("/etc/passwd")
    folder.log.write_bytes(b"")

    answer = client.get(f"{JOB}/archive")

    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        members = {member.name: member for member in archive.getmembers()}
        assert set(members) == {"job-1/log.txt", f"job-1/output/{'n' * 150}"}
        read = archive.extractfile(members[f"job-1/output/{'n' * 150}"])
        assert read is not None
        assert read.read() == b"x" * 1000


# -- inputs -------------------------------------------------------------------------------------------------------------


def test_a_file_is_uploaded_once_and_then_known(client: TestClient, settings: Settings) -> None:
    content = b"row\n" * 1_000_000
    address = f"{INPUTS}/{digest_of(content)}"
    assert client.head(address).status_code == 404

    first, again = client.put(address, content=content), client.put(address, content=content)

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == {"reference": f"sha256:{digest_of(content)}", "size_bytes": len(content)}
    assert client.head(address).headers["content-length"] == str(len(content))
    [stored] = settings.inputs.iterdir()
    assert stored.read_bytes() == content
    assert stored.stat().st_mode & 0o777 == 0o600


def test_what_does_not_match_its_hash_leaves_nothing(client: TestClient, settings: Settings) -> None:
    answer = client.put(f"{INPUTS}/{digest_of(b'this')}", content=b"that")

    assert answer.status_code == 422
    assert digest_of(b"that") in answer.json()["detail"]
    assert list(settings.inputs.iterdir()) == []


@pytest.mark.parametrize("announced", [True, False])
def test_an_upload_that_is_too_large_leaves_nothing(settings: Settings, store: Store, announced: bool) -> None:
    def chunks() -> Iterator[bytes]:
        yield from (b"x" * 100_000 for _ in range(30))

    app = create_app(settings.model_copy(update={"max_input_bytes": 2_000_000}), store)
    headers = {"Authorization": f"Bearer {settings.token_file.read_text().strip()}"}
    client = TestClient(app, base_url="http://localhost", headers=headers)

    answer = client.put(f"{INPUTS}/{'0' * 64}", content=b"x" * 3_000_000 if announced else chunks())

    assert answer.status_code == 413
    assert not settings.inputs.exists() or list(settings.inputs.iterdir()) == []


@pytest.mark.parametrize("name", ["..", "0" * 63, "G" * 64, "A" * 64, "../../token"])
def test_an_input_is_named_by_its_hash_only(client: TestClient, name: str) -> None:
    assert client.put(f"{INPUTS}/{name}", content=b"x").status_code in (404, 405, 422)


def test_what_a_killed_upload_left_is_removed_at_the_start(settings: Settings, app: object) -> None:
    settings.inputs.mkdir(parents=True)
    draft: Path = settings.inputs / ".upload-0123"
    draft.write_bytes(b"half")

    with TestClient(app):  # type: ignore[arg-type]
        assert not draft.exists()
