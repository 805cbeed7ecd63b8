"""The pages as documents: what they say, to whom, and that nothing that a job says becomes HTML."""

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import pytest

from hypothesis import HealthCheck, given, settings as configured, strategies as st  # isort: skip
from live_api import NOW
from starlette.testclient import TestClient
from until import until

from api import job_panel, page, panels, wording
from api.app import create_app
from api.cli import flags
from api.cli.submit import submit as submit_command
from api.curves import Curves
from api.nights import Nights
from daemon.rig import cpu_slots
from daemon.samples import SlotNow, now_path, publish
from daemon.settings import Settings
from daemon.store import Store, connect
from jobs.model import Cause, End, Job, Outcome, Progress, State
from jobs.rundir import RunDir, append_json_line, run_dir, write_json
from jobs.spec import dump, parse

PAGES = (
    "/",
    "/jobs/1",
    "/fragments/night",
    "/fragments/slots",
    "/fragments/jobs",
    "/fragments/job/1",
)
XSS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "</title></pre></textarea><iframe src=javascript:alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt; &#60;i&#62; &amp;",
    "<!--<a href='javascript:alert(1)'>-->",
)


class Skeleton(HTMLParser):
    """The elements of a document with the names of their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def settings(home: Path) -> Settings:
    """A rig with a window, in a zone of its own."""
    return Settings(home=home, rig="rig", port=0, slots="cpu:2", timezone="Europe/Berlin", window="22:00-08:00")


@pytest.fixture
def reader(settings: Settings, store: Store) -> Iterator[TestClient]:
    """The owner, at a moment when the window is closed: 12:06 in Berlin."""
    store.describe_rig("rig", {"slots": [slot.to_json() for slot in cpu_slots(2)]})
    store.beat("rig", {"at": NOW})
    sampled(settings)
    app = create_app(settings, store, now=lambda: NOW)
    headers = {"Authorization": f"Bearer {settings.token_file.read_text().strip()}"}
    with TestClient(app, base_url="http://localhost", headers=headers, follow_redirects=False) as client:
        yield client


def sampled(settings: Settings, *, at: float = NOW, source: str = "cpu", problem: str | None = None) -> None:
    """The sampler's latest word."""
    slots = {f"cpu:{n}": asdict(SlotNow(name="A processor", index=n, utilization_ratio=0.42)) for n in range(2)}
    publish(now_path(settings.home), {"at": at, "pid": 1, "source": source, "problem": problem, "slots": slots})


def put(store: Store, **fields: Any) -> Job:
    """One job in the queue."""
    [job], _ = store.submit([parse({"kind": "command", "argv": ["true"], "window": "any", **fields})], now=NOW - 600)
    return job


def running(store: Store, job: Job, slot: str = "cpu:0") -> Job:
    offered = store.offer(job.id, rig="rig", slots=(slot,), epoch=store.new_epoch("rig"), now=NOW - 500)
    return store.claim(job.id, fence=offered.fence, owner="w", now=NOW - 480, lease_s=60)


def end(store: Store, job: Job, at: float = NOW, **outcome: Any) -> Job:
    job = running(store, job)
    return store.finish(job.id, fence=job.fence, outcome=Outcome(**{"end": End.SUCCEEDED, **outcome}), now=at)


def nights(client: TestClient) -> Nights:
    """The clock of these tests stands still, and so would the night."""
    known: Nights = client.app.state.context.nights  # type: ignore[attr-defined]
    return known


def text_of(client: TestClient, path: str) -> str:
    """What somebody reads there, in one line with plain spaces."""
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return re.sub(r"\s+", " ", Skeleton(answer.text).text)


# -- who may read -----------------------------------------------------------------------------------------------------------


def test_s3_whoever_has_no_token_is_led_to_the_login_and_sees_nothing(reader: TestClient, store: Store) -> None:
    put(store, name="a secret plan")
    for path in PAGES:
        answer = reader.get(path, headers={"Authorization": "", "Accept": "text/html"})
        assert answer.status_code == 303 and answer.headers["location"].startswith("/login?next=/"), path
        assert "secret" not in answer.text
        assert reader.get(path, headers={"Authorization": "", "Accept": "*/*"}).status_code == 401, path


def test_the_login_page_needs_no_script_and_leads_back(reader: TestClient) -> None:
    html = reader.get("/login?next=/jobs/7", headers={"Authorization": ""}).text
    assert '<form method="post" action="/login"' in html and 'name="token"' in html
    assert 'name="next" value="/jobs/7"' in html


@pytest.mark.parametrize("next", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_the_login_leads_nowhere_else(reader: TestClient, next: str) -> None:
    assert 'name="next" value="/"' in reader.get("/login", params={"next": next}).text


def test_s15_every_page_comes_with_a_strict_policy_and_has_nothing_inline(reader: TestClient, store: Store) -> None:
    put(store)
    for path in (*PAGES, "/login", "/jobs/99", "/static/overnight.css"):
        answer = reader.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        if path.startswith("/static"):
            continue
        html = answer.text
        assert not re.search(r"<script(?![^>]* src=\"/static/)|<style|\sstyle=|\son[a-z]+=|javascript:", html), path
        assert not re.search(r"(?:src|href|action)=\"(?!/|#)", html), f"{path} names another site"


def test_assets_are_kept_for_good_under_their_own_hash(reader: TestClient) -> None:
    html = reader.get("/").text
    urls = re.findall(r'"(/static/[^"]+)"', html)
    assert len(urls) >= 3
    for url in urls:
        answer = reader.get(url, headers={"Authorization": ""})
        assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"]
    assert reader.get("/static/overnight.css").headers["cache-control"] == "no-cache"
    assert reader.get("/static/..%2fpage.py").status_code == 404
    assert reader.get("/static/home.html").status_code == 404


# -- what the rig's page says -----------------------------------------------------------------------------------------------


def test_an_idle_rig_says_so_and_how_fresh_that_is(reader: TestClient) -> None:
    text = text_of(reader, "/")
    assert "Ready for the first job" in text
    assert "daemon just now" in text and "sampler just now" in text
    assert "Nothing waits." in text and "Nothing has ended yet." in text


def test_a_rig_without_nvml_says_what_its_slots_are(reader: TestClient) -> None:
    text = text_of(reader, "/")
    assert "No NVIDIA driver: CPU slots, sampled with psutil." in text
    assert "CPU slot 0" in text and "42 %" in text


def test_a_silent_daemon_is_told(reader: TestClient, store: Store) -> None:
    store.redis.delete("overnight:beat:rig")
    assert "The daemon has been silent for more than 15 s." in text_of(reader, "/")


def test_a_beat_from_long_ago_is_no_beat(reader: TestClient, store: Store) -> None:
    store.beat("rig", {"at": NOW - 100})
    assert "The daemon has been silent" in text_of(reader, "/")


def test_a_rig_that_never_reported_says_how_to_start_it(reader: TestClient, store: Store) -> None:
    store.redis.flushall()
    assert "No daemon has reported from rig yet. Start it with: overnight up" in text_of(reader, "/")


def test_a_silent_sampler_makes_its_readings_old(reader: TestClient, settings: Settings) -> None:
    sampled(settings, at=NOW - 42)
    assert "The sampler spoke last 42 s ago." in text_of(reader, "/")
    assert 'class="readings old"' in reader.get("/").text


def test_a_broken_driver_is_told_in_the_samplers_words(reader: TestClient, settings: Settings) -> None:
    sampled(settings, source="nvml", problem="GPU 1 does not answer (lost): it is left out until it does.")
    assert "GPU 1 does not answer (lost)" in text_of(reader, "/")


def test_a_worker_that_is_down_is_told(reader: TestClient, store: Store) -> None:
    down = {"worker cpu:1": {"alive": False, "deaths": 3, "last_exit": -9}, "worker cpu:0": {"alive": True}}
    store.beat("rig", {"at": NOW, "processes": down})
    text = text_of(reader, "/")
    assert "worker cpu:1 is down and will be restarted." in text and "worker down" in text


def test_a_paused_rig_and_a_closed_window_explain_why_nothing_starts(reader: TestClient, store: Store) -> None:
    put(store, name="night work", window="night")
    text = text_of(reader, "/")
    assert "1 job waiting for 22:00" in text and "Outside the window. It opens at 22:00." in text
    assert "outside the window; it opens at 22:00" in text
    store.pause("rig")
    text = text_of(reader, "/")
    assert "Paused with 1 job waiting" in text and "the rig is paused" in text and "Resume rig" in text


def test_a_slot_shows_its_job_with_progress_loss_and_the_time_of_its_end(reader: TestClient, store: Store) -> None:
    job = running(store, put(store, name="the fine-tune"))
    told = Progress(phase="training", step=740, total=2000, eta_s=3600, metrics={"loss": 1.21345})
    store.renew(job.id, fence=job.fence, progress=told, lease_s=60)
    text = text_of(reader, "/")
    assert "the fine-tune" in text and "37 % · step 740 of 2 000 · loss 1.213" in text
    assert "done about 13:06" in text  # in the rig's zone, not in UTC
    assert "1 job running" in text


def test_a_paused_slot_and_one_that_is_about_to_start_are_told(reader: TestClient, store: Store) -> None:
    store.pause("rig", "cpu:1")
    job = put(store)
    store.offer(job.id, rig="rig", slots=("cpu:0",), epoch=store.new_epoch("rig"), now=NOW)
    text = text_of(reader, "/")
    assert "starting on CPU slot 0" in text and "Paused: it takes no job" in text


def test_the_queue_stands_in_the_order_of_its_start_with_reasons(reader: TestClient, store: Store) -> None:
    for slot in ("cpu:0", "cpu:1"):
        running(store, put(store), slot)
    later = put(store, name="an ordinary one")
    backlog = put(store, name="a filler", priority="backlog")
    first = put(store, name="an urgent one", priority="high")
    child = put(store, name="a child", after=[later.id])
    text = text_of(reader, "/")
    places = [text.index(name) for name in ("an urgent one", "an ordinary one", "a child", "a filler")]
    assert places == sorted(places)
    assert f"waits for job {later.id}, which is queued" in text
    assert "2 jobs ahead; needs a CPU slot" in text  # the child counts for none: it could not start
    assert first.id and backlog.id and child.id


def test_what_ended_stands_by_the_time_of_its_end(reader: TestClient, store: Store) -> None:
    jobs = [put(store, name=f"number {n}") for n in range(3)]
    for job, at in zip(jobs, (NOW - 10, NOW - 30, NOW - 20), strict=True):
        end(store, job, at)
    text = text_of(reader, "/")
    ended = text[text.index("Ended") :]
    places = [ended.index(name) for name in ("number 0", "number 2", "number 1")]
    assert places == sorted(places)


def test_a_failure_is_told_with_cause_and_message_and_its_tile_leads_to_it(reader: TestClient, store: Store) -> None:
    failure = Outcome(end=End.FAILED, cause=Cause.BAD_INPUT, message="Line 37 is no JSON.")
    end(store, put(store, name="broken"), **asdict(failure))
    end(store, put(store, name="went well"), usage={"energy_j": 3.6e6}, metrics={"eval_loss": 1.2345})
    text = text_of(reader, "/")
    assert "failed: bad input · Line 37 is no JSON." in text
    assert "1.00 kWh" in text and "eval loss 1.234" in text
    [address] = re.findall(r'href="(/jobs\?state=failed&amp;since=[0-9]+)"', reader.get("/").text)
    failed = text_of(reader, address.replace("&amp;", "&"))
    assert "broken" in failed and "went well" not in failed


def test_the_first_page_shows_the_ends_of_long_lists_and_leads_to_the_rest(reader: TestClient, store: Store) -> None:
    store.submit([parse({"kind": "command", "argv": ["true"], "name": f"waits {n}"}) for n in range(60)], now=NOW)
    for n in range(60):
        end(store, put(store, name=f"ended {n}"), NOW - n)
    html = reader.get("/").text.partition('id="jobs"')[2]
    assert len(re.findall(r'href="/jobs/(\d+)"', html)) == 2 * panels.ROWS
    assert 'href="/jobs?state=queued">All 60 that wait' in html and 'href="/jobs">All jobs' in html


@pytest.mark.parametrize("query", ["state=failed", "q=lora+r32&kind=finetune", "tag=a%26b"])
def test_an_old_address_of_the_list_leads_to_the_list(reader: TestClient, query: str) -> None:
    answer = reader.get(f"/?{query}&other=x", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/jobs?{query}")


def test_without_redis_the_page_says_so_and_shows_the_readings(home: Path) -> None:
    settings = Settings(home=home, rig="rig", port=0, timezone="UTC", redis_url=f"unix://{home}/nobody.sock")
    sampled(settings)
    app = create_app(settings, Store(connect(settings.redis_url or "")), now=lambda: NOW)
    headers = {"Authorization": f"Bearer {settings.token_file.read_text().strip()}"}
    with TestClient(app, base_url="http://localhost", headers=headers) as client:
        page.warm(app.state.context)  # as at the start: that Redis is not there yet is no error
        text = text_of(client, "/")
        assert "Redis does not answer." in text and "CPU slot 1" in text and "queue unknown" in text
        assert client.get("/jobs/1").status_code == 503
        job = Job(id="1", kind="command", name="from its folder", spec={"argv": ["true"]}, created_at=NOW, rank=1)
        folder = run_dir(settings.runs, "1")
        folder.create()
        write_json(folder.state, job.to_json())
        text = text_of(client, "/jobs/1")
        assert "from its folder" in text and "Redis does not answer." in text


# -- a job's page -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job_id", ["99", "0", "abc", "1e3", "..%2f1", "-1", "9" * 30, "%F0%9F%8C%99", "<em>"])
def test_an_unknown_job_is_a_page_too(reader: TestClient, job_id: str) -> None:
    answer = reader.get(f"/jobs/{job_id}")
    assert answer.status_code == 404
    if answer.headers["content-type"].startswith("text/html"):
        assert "There is no job" in Skeleton(answer.text).text and "<em>" not in answer.text


def test_a_jobs_page_tells_its_whole_story(reader: TestClient, store: Store, settings: Settings) -> None:
    job = running(store, put(store, name="two tries", argv=["python", "train.py", "--lr", "1"], env={"A": "b c"}))
    oom = Outcome(end=End.FAILED, cause=Cause.SIGNAL, message="Killed by SIGKILL, which Overnight did not send.", next_fields={"batch_size": 2})  # fmt: skip
    job = store.finish(job.id, fence=job.fence, outcome=oom, now=NOW - 400)
    offered = store.offer(job.id, rig="rig", slots=("cpu:1",), epoch=store.new_epoch("rig"), now=NOW - 300)
    job = store.claim(job.id, fence=offered.fence, owner="w", now=NOW - 300, lease_s=60)
    failure = Outcome(end=End.FAILED, cause=Cause.TIMEOUT, message="It took too long.", hint="Raise max_runtime_s.", metrics={"eval_loss": 0.5}, usage={"gpu_s": 120, "energy_j": 7.2e5, "peak_memory_bytes": 3 << 30})  # fmt: skip
    store.finish(job.id, fence=job.fence, outcome=failure, now=NOW - 180)
    folder = run_dir(settings.runs, job.id)
    folder.create()
    folder.log.write_text("the first line\n\x1b[31mred\x1b[0m\n10 %\r20 %\r30 %\n")
    (folder.output / "a b.txt").write_text("x" * 2048)
    for step in range(1, 700):
        append_json_line(folder.metrics, {"step": step, "loss": 1 / step, "speed": step % 7})
    text = text_of(reader, f"/jobs/{job.id}")
    assert "Failed: over its time limit, after 3 min 20 s." in text
    assert "It took too long." in text and "Raise max_runtime_s." in text
    assert "failed: killed from outside on CPU slot 0" in text and "failed: over its time limit on CPU slot 1" in text
    assert "0.20 kWh" in text and "3.0 GiB" in text and "eval loss 0.5" in text
    assert "the first line red 30 %" in text and "10 %" not in text
    assert "submit run --name 'two tries' --window any --env 'A=b c' -- python train.py --lr 1" in text
    assert "batch_size 2 changed from none" in text
    html = reader.get(f"/jobs/{job.id}").text
    assert f'href="/api/v1/jobs/{job.id}/files/output/a%20b.txt"' in html and "2.0\u202fKiB" in html
    assert "Loss: loss from 1 at step 1 to" in html
    [path] = re.findall(r'<path class="line k0" d="(M[^"]+)"', html)[:1]
    assert path.count("L") <= 300


@pytest.mark.parametrize(
    ("state", "verbs"),
    [
        (State.QUEUED, ["hold", "move", "move", "priority", "priority", "cancel"]),
        (State.RUNNING, ["preempt", "cancel"]),
        (State.SUCCEEDED, []),
        (State.FAILED, ["retry"]),
    ],
)
def test_a_page_offers_what_its_job_allows(reader: TestClient, store: Store, state: State, verbs: list[str]) -> None:
    job = put(store)
    if state is State.RUNNING:
        running(store, job)
    elif state.final:
        end(store, job, end=End(state), cause=Cause.BAD_INPUT if state is State.FAILED else None)
    html = reader.get(f"/jobs/{job.id}").text
    assert re.findall(rf'formaction="/do/jobs/{job.id}/(\w+)"', html) == verbs
    assert not re.search(r'href="[^"]*/(cancel|retry|preempt|pause)', html), "a link must change nothing (S45)"


def test_curves_follow_a_growing_file_and_forget_one_that_was_replaced(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    curves = Curves()
    folder.metrics.write_text('{"step": 1, "loss": 3}\n{"step": 2, "lo')
    assert curves.read(folder) == {"loss": [(1.0, 3.0)]}
    with folder.metrics.open("a") as file:
        file.write(
            'ss": 2}\n{"step": 1, "loss": 2.5}\nnot json\n[1]\n{"step": 3, "loss": NaN}\n{"step": true, "loss": 1}\n'
        )
        file.write(
            '{"step": 4, "loss": 1e999}\n{"step": 5, "loss": "7", "n": 1' + "0" * 400 + "}\n" + "[" * 100_000 + "\n"
        )
    assert curves.read(folder) == {"loss": [(1.0, 2.5), (2.0, 2.0)]}
    folder.metrics.with_name("new").write_text('{"step": 9, "eval_loss": 1}\n')
    folder.metrics.with_name("new").replace(folder.metrics)
    assert curves.read(folder) == {"eval_loss": [(9.0, 1.0)]}


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_s19_a_log_that_is_a_link_or_a_pipe_is_not_read(
    reader: TestClient, store: Store, settings: Settings, name: str
) -> None:
    import os

    job = put(store)
    folder = run_dir(settings.runs, job.id)
    folder.create()
    secret = settings.home / "secret"
    secret.write_text('{"step": 1, "canary": 1}\n{"step": 2, "canary": 2}\n')
    (folder.path / name).symlink_to(secret)
    assert "canary" not in reader.get(f"/jobs/{job.id}").text
    (folder.path / name).unlink()
    os.mkfifo(folder.path / name)
    assert reader.get(f"/jobs/{job.id}").status_code == 200


# -- hostile text -----------------------------------------------------------------------------------------------------------


def everything_says(text: str, number: float = 1.0) -> tuple[Job, dict[str, Any]]:
    """A failed job whose every text is this one, and what its run folder holds."""
    outcome = Outcome(
        end=End.FAILED, cause=Cause.USER_ERROR, message=text, hint=text, metrics={text: number, "note": text}
    )
    fields = {"name": text, "spec": {"argv": [text, text], "env": {"A": text}, text: text, "model": text}}
    job = Job(id="1", kind="command", created_at=NOW, rank=1, started_at=NOW, finished_at=NOW, **fields)  # type: ignore[arg-type]
    waiting = Job(id="1", kind="command", created_at=NOW, rank=1, **fields)  # type: ignore[arg-type]
    run = waiting.offered(rig="rig", slots=("cpu:0",), now=NOW).claimed(fence=1, owner="w", now=NOW)
    run = run.progressed(fence=1, progress=Progress(phase=text, step=1, total=2, metrics={text: number}))
    job = run.ended(fence=1, outcome=outcome, now=NOW)
    return job, {"log": f"{text}\n{text}", "metrics": [{"step": n, text: n, "loss": n} for n in (1, 2, 3)]}


@pytest.fixture
def pages_of(reader: TestClient, store: Store, settings: Settings) -> Callable[[str], list[Skeleton]]:
    """Every page about a job whose every text is the given one."""

    @cache
    def render(text: str) -> list[Skeleton]:
        job, traces = everything_says(text)
        store.redis.delete("overnight:job:1")
        store.restore([job])
        folder = run_dir(settings.runs, "1")
        folder.create()
        folder.log.write_bytes(traces["log"].encode("utf-8", "surrogatepass"))
        folder.metrics.unlink(missing_ok=True)
        for line in traces["metrics"]:
            append_json_line(folder.metrics, line)
        nights(reader).forget()
        until(lambda: "data-old" not in reader.get("/").text, within_s=30)  # the night is made anew
        answers = [reader.get(path) for path in ("/", "/jobs/1", "/fragments/job/1", "/fragments/night")]
        assert {answer.status_code for answer in answers} == {200}
        return [Skeleton(answer.text) for answer in answers]

    return render


@pytest.mark.parametrize("text", XSS)
def test_s16_what_a_job_says_is_shown_and_never_becomes_html(
    pages_of: Callable[[str], list[Skeleton]], text: str
) -> None:
    harmless, hostile = pages_of("harmless"), pages_of(text)
    for one, other in zip(harmless, hostile, strict=True):
        assert one.elements == other.elements
    assert all(text in other.text for other in hostile)


@configured(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(min_size=1, max_size=40).filter(lambda text: text.strip() and text not in ("note", "loss", "step", "epoch", "time", "model", "argv", "env")))  # fmt: skip
def test_s16_no_text_at_all_becomes_html(pages_of: Callable[[str], list[Skeleton]], text: str) -> None:
    for one, other in zip(pages_of("harmless"), pages_of(text), strict=True):
        assert one.elements == other.elements


@configured(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.characters(), max_size=200))
def test_s17_what_is_printed_has_no_control_characters(text: str) -> None:
    clean = str(wording.printable(text))
    assert not any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in clean)
    clean.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\x1b[31;1mred\x1b[0m", "red"), ("\x1b]0;title\x07after", "after"), ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"), ("a\u202eb", "ab"), ("\x9b31m", "31m")],
)  # fmt: skip
def test_s17_terminal_sequences_leave_no_trace(text: str, shown: str) -> None:
    assert wording.printable(text) == shown


# -- the command that repeats it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        {"kind": "finetune", "name": "a 'quoted' name", "model": "org/model", "data": "rows.jsonl", "learning_rate": 3e-5, "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}, "export": ["merged", "gguf"], "preflight": False, "lora": {"r": 8, "target_modules": ["q_proj", "v_proj"]}, "tags": ["a", "b"], "packing": True, "assistant_only_loss": False, "after": ["3", "4"], "max_runtime_s": 5400.5},
        {"kind": "generate", "model": "job:12", "data": "sha256:" + "0" * 64, "temperature": 0.7, "max_new_tokens": 64, "priority": "high", "stop": ["a b", "c"], "adapters": {"tuned": "job:3"}},
        {"kind": "evaluate", "model": "org/model", "adapter": "job:12", "tasks": ["arc_easy", "mine"], "num_fewshot": 2},
        {"kind": "benchmark", "model": "org/model", "batch_sizes": [1, 8], "prompt_lengths": [128], "quantizations": ["none", "nf4"]},
        {"kind": "export", "adapter": "job:12", "to": ["merged", "gguf"]},
        {"kind": "command", "argv": ["python", "-c", "print('x y')"], "env": {"A": "1=2 3"}, "cwd": "/data", "retries": 2, "gpus": 2, "window": "any", "max_attempts": 5},
    ],
)  # fmt: skip
def test_the_command_on_the_page_submits_the_same_document(document: dict[str, Any]) -> None:
    import shlex

    spec = dump(parse(document))
    job = Job(id="1", kind=str(document["kind"]), name="", spec=spec, created_at=NOW, rank=1)
    program, verb, *arguments = shlex.split(job_panel.command(job))
    assert program == "submit"
    command = submit_command.commands[verb]
    values = command.make_context(verb, list(arguments), resilient_parsing=False).params
    again = flags.document(str(document["kind"]), values) | ({"argv": list(values["argv"])} if "argv" in values else {})
    assert dump(parse(again)) == spec
    assert isinstance(command, click.Command)
