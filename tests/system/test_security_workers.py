"""Security promises of the workers; the numbers are those of the project's checklist."""

import json
import zlib
from pathlib import Path
from typing import Any

from rq import Queue
from rq.serializers import JSONSerializer
from until import until

from daemon.store import ENTRYPOINT, mailbox
from jobs.model import State


def test_s24_a_mailbox_performs_offers_and_nothing_else(rig: Any, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    queue = Queue(mailbox("rig", "cpu:0"), connection=rig.store.redis, serializer=JSONSerializer)
    payload = ["os.system", None, [f"touch {marker}"], {}]
    forged = queue.enqueue(ENTRYPOINT, "1", 1, job_id="forged-1")
    rig.store.redis.hset(f"rq:job:{forged.id}", "data", zlib.compress(json.dumps(payload).encode()))
    plain = queue.enqueue("os.system", f"touch {marker}", job_id="forged-2")
    until(lambda: not queue.job_ids, evidence=rig.evidence)
    after = rig.count(1, 0.01)
    assert rig.until_ended(after).state is State.SUCCEEDED
    assert not marker.exists() and plain is not None


def test_s35_a_job_sees_nothing_of_the_rigs_own(make_rig: Any) -> None:
    rig = make_rig(environment={"OVERNIGHT_TOKEN": "CANARYTOKEN"})
    job = rig.submit(kind="command", argv=["env"])
    assert rig.until_ended(job).state is State.SUCCEEDED
    printed = rig.log(job)
    assert "OVERNIGHT_JOB_ID=" in printed
    names = {line.partition("=")[0] for line in printed.splitlines()}
    assert not names & {"OVERNIGHT_TOKEN", "OVERNIGHT_REDIS_URL", "OVERNIGHT_HOME", "RQ_WORKER_ID", "RQ_JOB_ID"}
    assert "CANARYTOKEN" not in printed


def test_s34_a_secret_reaches_the_job_by_name_and_is_nowhere_else(rig: Any) -> None:
    secrets = rig.settings.secrets_file
    secrets.write_text('HF_TOKEN = "hf_CANARY123"\n')
    secrets.chmod(0o600)
    script = 'test "$HF_TOKEN" = hf_CANARY123 && echo it is there'
    job = rig.submit(
        kind="command", argv=["sh", "-c", script.replace("hf_CANARY123", "hf_CANARY$((100+23))")], secrets=["HF_TOKEN"]
    )
    assert rig.until_ended(job).state is State.SUCCEEDED, rig.evidence()
    assert "it is there" in rig.log(job)
    holders = [p for p in rig.settings.home.rglob("*") if p.is_file() and b"hf_CANARY123" in p.read_bytes()]
    assert holders == [secrets]


def test_s25_the_queue_listens_on_a_private_socket_only(rig: Any) -> None:
    folder = rig.settings.redis_folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "q.sock").stat().st_mode & 0o777 == 0o700
    assert rig.store.redis.config_get("port")["port"] == "0"


def test_s37_an_argument_is_never_read_by_a_shell(rig: Any) -> None:
    hostile = "$(touch oops); `touch oops` | touch oops"
    job = rig.submit(kind="command", argv=["printf", "%s", hostile], name=hostile)
    assert rig.until_ended(job).state is State.SUCCEEDED
    assert rig.log(job).endswith(hostile)
    assert not list(rig.folder(job).path.rglob("oops"))
