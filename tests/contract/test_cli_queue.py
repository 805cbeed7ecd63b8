"""`overnight edit, move, hold, release, retry, cancel, preempt, pause` against a real API: they do what was shown, no more."""

import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from live_api import LiveApi

from api.cli import choosing, overnight, toml_text
from api.client import ApiProblem, Client
from daemon.rig import cpu_slots
from jobs.model import Cause, End, Job, Outcome, Progress, State, Wish, WishKind
from jobs.spec import parse


class Shell:
    """Somebody at a terminal beside a running API, and the hands of the daemon."""

    def __init__(self, live: LiveApi):
        self.live, self.store = live, live.store
        self.environment = {
            "OVERNIGHT_URL": live.url,
            "OVERNIGHT_TOKEN": live.token,
            "OVERNIGHT_HOME": str(live.settings.home / "nobody"),
            "XDG_CONFIG_HOME": str(live.settings.home / "config"),
        }

    def __call__(self, *args: str, says: str | None = None, **environment: str) -> Result:
        return CliRunner(env={**self.environment, **environment}).invoke(overnight, list(args), input=says)

    def ok(self, *args: str, **more: Any) -> Result:
        result = self(*args, **more)
        assert result.exit_code == 0, result.output
        return result

    def put(self, count: int = 1, **fields: Any) -> list[str]:
        specs = [parse({"kind": "command", "argv": ["true"], **fields})] * count
        return [job.id for job in self.store.submit(specs, now=time.time())[0]]

    def offer(self, job_id: str, slot: str = "cpu:0") -> Job:
        epoch = self.store.new_epoch("rig")
        return self.store.offer(job_id, rig="rig", slots=(slot,), epoch=epoch, now=time.time())

    def run(self, job_id: str, slot: str = "cpu:0") -> Job:
        fence = self.offer(job_id, slot).fence
        return self.store.claim(job_id, fence=fence, owner="w", now=time.time(), lease_s=600)

    def end(self, job_id: str, end: End = End.FAILED) -> None:
        job = self.run(job_id)
        cause = Cause.USER_ERROR if end is End.FAILED else None
        self.store.finish(job_id, fence=job.fence, outcome=Outcome(end=end, cause=cause), now=time.time())

    def queue(self) -> list[str]:
        with Client(self.live.url, self.live.token) as client:
            return [job["id"] for job in client.jobs(order="queue", limit=200)["jobs"]]

    def states(self, ids: list[str]) -> list[str]:
        return [str(self.store.get(job_id).state) for job_id in ids]


@pytest.fixture
def shell(live: LiveApi) -> Iterator[Shell]:
    """A rig where nothing waits and nothing is paused."""
    shell = Shell(live)
    live.store.describe_rig("rig", {"slots": [slot.to_json() for slot in cpu_slots(2)]})
    yield shell
    for job in live.store.unfinished().values():
        live.store.wish(job.id, Wish(kind=WishKind.CANCEL, reason="over", asked_at=time.time()))
        if job.state is State.RUNNING:
            live.store.finish(job.id, fence=job.fence, outcome=Outcome(end=End.CANCELLED), now=time.time())
    for slot in (None, "cpu:0", "cpu:1"):
        live.store.resume("rig", slot)


# -- each verb --------------------------------------------------------------------------------------------------------------


def test_jobs_move_together_and_the_answer_says_where_they_stand(shell: Shell) -> None:
    a, b, c, d = shell.put(4)
    told = shell.ok("move", d, c, "--before", a).stdout
    assert shell.queue() == [d, c, a, b]
    assert f"Job {d} (command true) waits, place 1 in the queue: " in told
    shell.ok("move", d, "--last")
    shell.ok("move", b, "--first")
    shell.ok("move", f"#{c}", "--after", f"job:{a}")
    assert shell.queue() == [b, a, c, d]
    assert [job["id"] for job in json.loads(shell.ok("move", d, "--first", "--json").stdout)["jobs"]] == [d]


def test_a_move_needs_one_place_and_is_refused_in_words(shell: Shell) -> None:
    [low], [high] = shell.put(priority="normal"), shell.put(priority="high")
    for args in ((), ("--first", "--last"), ("--before", high, "--after", high)):
        result = shell("move", low, *args)
        assert (result.exit_code, "One of --first, --last" in result.stderr) == (2, True)
    result = shell("move", low, "--before", high)
    assert (result.exit_code, f"overnight edit {low} --priority high" in result.stderr) == (2, True)
    assert shell("move", low, "--before", "999999").exit_code == 5
    shell.ok("edit", low, "--priority", "high")
    shell.ok("move", low, "--before", high)
    assert shell.queue() == [low, high]


def test_hold_release_cancel_retry_and_preempt_say_what_happened(shell: Shell) -> None:
    [job] = shell.put(name="patient")
    assert shell.ok("hold", job).stdout == f"Job {job} (patient) is held: it waits until it is released.\n"
    assert "held until it is released" in shell.ok("ls", "--queued").stdout
    assert "may start again" in shell.ok("release", job).stdout
    assert f"is cancelled. `overnight retry {job}` queues it again." in shell.ok("cancel", job).stdout
    assert "is queued again, place 1 in the queue: " in shell.ok("retry", job).stdout
    assert "does not run; it waits" in shell.ok("preempt", job).stdout
    shell.run(job)
    assert "was asked to save its work, free its GPU and wait again" in shell.ok("preempt", job).stdout
    assert "is running and was asked to stop" in shell.ok("cancel", job).stdout
    refused = shell("hold", job)
    assert (refused.exit_code, f"overnight preempt {job}" in refused.stderr) == (2, True)


def test_edit_takes_flags_and_any_field(shell: Shell) -> None:
    [job] = shell.put(max_runtime_s=60, env={"A": "1"})
    told = shell.ok(
        "edit", job, "--priority", "backlog", "--window", "any", "--name", "new", "--not-before", "2031-01-01T22:00",
        "--max-runtime", "1h30m", "--set", "env.B=two", "--set", 'tags=["x"]',
    ).stdout  # fmt: skip
    assert "is changed, place 1 in the queue: not before " in told
    record = shell.store.get(job)
    assert (record.priority, record.window, record.name, record.max_runtime_s) == ("backlog", "any", "new", 5400)
    assert record.spec["env"] == {"A": "1", "B": "two"}
    shell.ok("edit", job, "--not-before", "none", "--max-runtime", "none", "--set", "tags=null")
    record = shell.store.get(job)
    assert (record.not_before, record.max_runtime_s, record.tags) == (None, None, ())
    assert json.loads(shell.ok("edit", job, "--gpus", "2", "--json").stdout)["gpus"] == 2
    for wrong in (("--gpus", "0"), ("--priority", "top"), ("--not-before", "tonight"), ("--set", "colour=red")):
        assert shell("edit", job, *wrong).exit_code == 2, wrong


def test_what_is_about_to_start_is_left_as_it_is(shell: Shell) -> None:
    [job] = shell.put()
    shell.offer(job)
    for args in (("hold", job), ("edit", job, "--name", "x"), ("move", job, "--last")):
        result = shell(*args)
        assert (result.exit_code, "is about to start and can no longer be changed" in result.stderr) == (2, True)


def test_retry_may_change_a_field_first(shell: Shell) -> None:
    [job] = shell.put()
    shell.end(job)
    assert shell("retry", job, "--set", "colour=red").exit_code == 2
    shell.ok("retry", job, "--set", "max_runtime_s=60", "--set", "env.A=b")
    record = shell.store.get(job)
    assert (record.state, record.max_runtime_s, record.spec["env"]) == ("queued", 60, {"A": "b"})


# -- many at once, and no more than was shown -----------------------------------------------------------------------------------


def test_a_range_is_shown_with_its_count_and_nothing_happens_without_a_yes(shell: Shell) -> None:
    ids = shell.put(6)
    shell.store.wish(ids[2], Wish(kind=WishKind.CANCEL, reason="", asked_at=0))
    shell.store.delete(ids[2])
    shell.end(ids[3])
    span = f"{ids[0]}-{ids[4]}"
    for says, code in (("n\n", 1), ("", 2)):
        result = shell("cancel", span, says=says)
        assert (result.exit_code, "Nothing was done." in result.stderr) == (code, True)
        assert "cancel these 3 jobs?" in result.stderr
        assert f"Left out, as they are not queued or running: {ids[3]}." in result.stderr
    assert shell.queue() == [ids[0], ids[1], ids[4], ids[5]]
    shell.ok("cancel", span, says="y\n")
    assert shell.queue() == [ids[5]]
    assert shell("cancel", f"{ids[4]}-{ids[0]}").exit_code == 2
    assert shell("cancel", "99000-99010", "--yes").exit_code == 5


def test_filters_choose_only_jobs_in_a_state_that_the_command_is_for(shell: Shell) -> None:
    waiting = shell.put(3, tags=["sweep7"])
    other = shell.put()
    shell.end(waiting[0])
    shell.run(waiting[1])
    assert shell.ok("hold", "--tag", "sweep7", "--yes").stdout.count("is held") == 1
    shell.ok("preempt", "--tag", "sweep7", "-y")
    assert shell.store.get(waiting[1]).wish.kind == "preempt"  # type: ignore[union-attr]
    shell.ok("retry", "--tag", "sweep7", "--state", "failed", "-y")
    assert shell.states(waiting) == ["queued", "running", "queued"]
    assert not shell.store.get(other[0]).held
    for args in (("retry", "--state", "running"), ("hold", other[0], "--tag", "x"), ("cancel",), ("edit", "--tag", "sweep7", "-y")):  # fmt: skip
        assert shell(*args).exit_code == 2, args
    assert shell("hold", "--tag", "nobody", "-y").exit_code == 5


def test_a_job_that_left_the_state_in_which_it_was_shown_is_left_alone(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = shell.put(2, tags=["late"])

    def meanwhile(*args: Any, **kwargs: Any) -> bool:
        shell.run(first)
        shell.put(tags=["late"])  # was not shown
        return True

    monkeypatch.setattr(choosing.click, "confirm", meanwhile)
    result = shell("cancel", "--tag", "late", "--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 2
    assert [job["id"] for job in answer["jobs"]] == [second]
    assert answer["refused"][0]["id"] == first
    assert "is running by now, not queued; it was left alone" in answer["refused"][0]["detail"]
    assert shell.store.get(first).wish is None
    assert len(shell.queue()) == 1


def test_many_jobs_are_shown_to_the_last_number_and_told_as_a_count(shell: Shell) -> None:
    ids = shell.put(45, tags=["many"])
    asked = shell("hold", "--tag", "many", says="n\n").stderr
    assert f"and 25 more: {ids[20]}-{ids[44]}" in asked and "hold these 45 jobs?" in asked
    assert shell.ok("hold", "--tag", "many", "-y").stdout == "45 of 45 jobs: done.\n"
    assert all(shell.store.get(job_id).held for job_id in ids)
    shell.ok("move", "--tag", "many", "--first", "-y")
    assert shell.queue() == ids, "they keep their order"


def test_a_refusal_does_not_stop_the_others_and_the_list_says_both(shell: Shell) -> None:
    first, second = shell.put(2)
    result = shell("cancel", first, "999999", second, "--json")
    answer = json.loads(result.stdout)
    assert (result.exit_code, [job["id"] for job in answer["jobs"]]) == (5, [first, second])
    assert answer["refused"] == [{"id": "999999", "status": 404, "detail": "There is no job 999999."}]
    assert json.loads(shell.ok("retry", first, "--json").stdout)["state"] == "queued"


@given(st.lists(st.integers(1, 60), max_size=30))
def test_compact_ids_name_each_job_once(numbers: list[int]) -> None:
    found: list[int] = []
    for part in filter(None, choosing.compact(map(str, numbers and set(numbers))).split(", ")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    assert found == sorted(set(numbers))


# -- the queue in its order -----------------------------------------------------------------------------------------------------


def test_ls_queued_is_the_order_of_the_start_with_place_and_reason(shell: Shell) -> None:
    [late], [first], [held] = shell.put(priority="backlog"), shell.put(priority="high"), shell.put()
    shell.ok("hold", held)
    lines = shell.ok("ls", "--queued").stdout.splitlines()
    assert lines[0].split() == ["#", "ID", "PRIORITY", "NAME", "KIND", "GPUS", "WAITS", "BECAUSE"]
    assert [line.split()[:3] for line in lines[1:]] == [
        ["1", first, "high"],
        ["2", held, "normal"],
        ["3", late, "backlog"],
    ]
    assert lines[2].endswith("held until it is released")
    assert all(len(line.split(maxsplit=7)) == 8 for line in lines[1:]), "every waiting job says why"
    shown = shell.ok("show", held).stdout
    assert "place      2 in the queue, held" in shown and "held until it is released" in shown
    assert shell.ok("ls", "--state", "queued").stdout.splitlines()[1].split()[0] == "1"


# -- pause and resume --------------------------------------------------------------------------------------------------------


def test_pausing_says_what_goes_on_and_what_waits(shell: Shell) -> None:
    [running], [_] = shell.put(), shell.put()
    job = shell.run(running)
    shell.store.renew(running, fence=job.fence, progress=Progress(step=1, total=2, eta_s=7200.0), lease_s=600)
    assert f"CPU slot 0 takes no new job. Job {running} goes on until about " in shell.ok("pause", "0").stdout
    assert shell.store.paused() == {"rig:cpu:0"}
    shell.ok("pause", "0", "1")
    assert shell.store.paused() == {"rig:cpu:0", "rig:cpu:1"}
    assert "was asked to save its work and give way" in shell.ok("pause", "0", "--now").stdout
    assert shell.ok("resume", "1").stdout == "CPU slot 1 takes jobs again. It is free.\n"
    assert shell.ok("pause").stdout == "The rig rig takes no new job. 1 running, 1 waiting.\n"
    assert json.loads(shell.ok("resume", "--json").stdout)["paused"] is False
    assert [slot["id"] for slot in json.loads(shell.ok("resume", "0", "1", "--json").stdout)["gpus"]] == [
        "cpu:0",
        "cpu:1",
    ]
    assert shell.store.paused() == frozenset()
    assert shell("pause", "0", "7").exit_code == 5
    assert shell.store.paused() == frozenset(), "none was paused when one is unknown"


# -- the editor ----------------------------------------------------------------------------------------------------------------


def editor(folder: Path, body: str) -> str:
    """An $EDITOR: Python with `text` to be changed."""
    script = folder / f"editor-{len(list(folder.iterdir()))}"
    script.write_text(
        f"#!{sys.executable}\nimport sys, re\nfrom pathlib import Path\npath = Path(sys.argv[-1])\n"
        f"text = path.read_text()\n{body}\npath.write_text(text)\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


def test_an_editor_changes_what_was_changed_in_it(shell: Shell, tmp_path: Path) -> None:
    [job] = shell.put(env={"A": "1", "B": "x"}, max_runtime_s=60.0, tags=["t"])
    change = """
assert "kind =" not in text and f"# Job" in text
text = text.replace('name = ""', 'name = "by hand \\\\u2713"').replace('max_runtime_s = 60.0\\n', '')
text = text.replace('A = "1"', 'A = "2"').replace('B = "x"\\n', 'C = "3"\\n')
text = text.replace("# not_before =", "not_before = 2031-01-01T22:00:00Z")
"""
    told = shell.ok("edit", job, EDITOR=editor(tmp_path, change), VISUAL="").stdout
    assert "Changed: env, max_runtime_s, name, not_before." in told
    record = shell.store.get(job)
    assert (record.name, record.max_runtime_s, record.tags) == ("by hand ✓", None, ("t",))
    assert record.spec["env"] == {"A": "2", "C": "3"}
    assert record.not_before == 1_925_071_200.0


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("", 0, "Nothing was changed."),
        ("text = ''", 1, "Nothing was changed."),
        ("text += 'name ='", 2, "This is no TOML"),
        ("text = 'colour = 3\\n' + text", 2, "colour: is not a field"),
        ("text = text.replace('gpus = 1', 'gpus = 99')", 2, "gpus"),
    ],
)
def test_an_edit_that_says_nothing_or_nonsense_changes_nothing(
    shell: Shell, tmp_path: Path, body: str, code: int, words: str
) -> None:
    [job] = shell.put()
    before = shell.store.get(job)
    result = shell("edit", job, "--editor", EDITOR=editor(tmp_path, body), VISUAL="")
    assert (result.exit_code, words in result.stderr) == (code, True), result.output
    assert shell.store.get(job) == before


def test_an_editor_that_was_open_too_long_overwrites_nothing(shell: Shell, tmp_path: Path) -> None:
    [job] = shell.put()
    code = f"""
import os, json, urllib.request
ask = urllib.request.Request({shell.live.url!r} + "/api/v1/jobs/{job}", method="PATCH", data=b'{{"name": "theirs"}}')
ask.add_header("Authorization", "Bearer " + os.environ["OVERNIGHT_TOKEN"]); ask.add_header("Content-Type", "application/json")
urllib.request.build_opener(urllib.request.ProxyHandler({{}})).open(ask)
text = text.replace('gpus = 1', 'gpus = 2')
"""
    result = shell("edit", job, EDITOR=editor(tmp_path, code), VISUAL="")
    assert (result.exit_code, "has been changed since you looked at it" in result.stderr) == (2, True), result.output
    record = shell.store.get(job)
    assert (record.name, record.gpus) == ("theirs", 1)
    shell.run(job)
    assert shell("edit", job, EDITOR="false", VISUAL="").exit_code == 2
    assert os.environ.get("OVERNIGHT_TOKEN") is None


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    TEXTS | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, min_size=1, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXTS, VALUES, max_size=6))
def test_every_document_survives_the_way_through_the_editor(document: dict[str, Any]) -> None:
    again = toml_text.read(toml_text.written(document))
    assert again == {name: value for name, value in document.items() if value != {}}
    assert toml_text.changes(again, again) == {}


@given(st.dictionaries(TEXTS, VALUES, max_size=5), st.dictionaries(TEXTS, VALUES, max_size=5))
def test_the_patch_makes_the_one_document_the_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    from api.editing import merged

    assert merged(before, toml_text.changes(before, after)) == after


def test_the_python_client_moves_and_edits(shell: Shell) -> None:
    first, second = shell.put(2)
    with Client(shell.live.url, shell.live.token) as client:
        assert [job["position"] for job in client.move([second], "first")["jobs"]] == [1]
        seen = client.job(first)["revision"]
        client.edit(first, {"name": "a"}, revision=seen)
        with pytest.raises(ApiProblem) as refused:
            client.edit(first, {"name": "b"}, revision=seen)
        assert refused.value.status == 412


def test_a_list_is_narrowed_down_by_cause_sweep_and_time(shell: Shell) -> None:
    failed, _ = shell.put(2, tags=["narrow"])
    shell.end(failed)

    def listed(*args: str) -> list[str]:
        return [job["id"] for job in json.loads(shell.ok("ls", "--json", "--tag", "narrow", *args).stdout)["jobs"]]

    assert len(listed()) == 2
    assert listed("--cause", "user_error") == listed("--since", "1h", "--sweep", "none") == [failed]
    assert listed("--cause", "nan") == listed("--sweep", "7") == []
    refused = shell("ls", "--since", "yesterday")
    assert refused.exit_code == 2 and "“yesterday” is no time: 24h, 7d" in refused.output
