"""`overnight up, gpus, rig, pause, resume, token, config`: the rig itself."""

import importlib.util
import os
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from api.cli import config, output
from api.cli.session import FAILED, NOT_FOUND, USAGE, Session, fail, with_rig

Json = dict[str, Any]

#: What `overnight up` needs beyond a laptop's install, by import name. Found, not loaded.
RIG_PACKAGES = ("redis", "rq", "fastapi", "uvicorn", "torch", "transformers", "peft", "trl")
ROOT = Path(__file__).resolve().parent.parent.parent


def missing_packages() -> list[str]:
    """Packages of the rig that are not installed here."""
    return [name for name in RIG_PACKAGES if importlib.util.find_spec(name) is None]


def rig_fix() -> str:
    """How to install what a rig needs."""
    return f"{sys.executable} -m pip install -e '{ROOT}[rig]'"


def child_environment() -> dict[str, str]:
    """For `python -m daemon`: our own packages, whatever lies in the current folder."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if ROOT.name not in ("site-packages", "dist-packages"):  # a checkout
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return environment


@click.command("up")
@click.option("--home", type=click.Path(path_type=Path), help="Data folder (or OVERNIGHT_HOME).")
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help=f"Port to listen on. [default: {config.DEFAULT_PORT}]")
@click.option("--slots", help="auto, cpu:N, or GPU UUIDs with commas. [default: auto]")
@click.option("--redis", metavar="URL", help="A Redis or Valkey server of your own.")
def up(**flags: Any) -> None:
    """Run the rig, in the foreground. Ctrl-C or SIGTERM: running jobs save their work and resume at the next start."""
    if missing := missing_packages():
        fail(f"This machine has the laptop's install only ({', '.join(missing)} missing). Run: {rig_fix()}", USAGE)
    given = [part for name, value in flags.items() if value is not None for part in (f"--{name}", str(value))]
    os.execve(sys.executable, [sys.executable, "-m", "daemon", *given], child_environment())  # noqa: S606 - no shell wanted


@click.command("reindex")
@click.option("--home", type=click.Path(path_type=Path), help="Data folder (or OVERNIGHT_HOME).")
def reindex(home: Path | None) -> None:
    """Put jobs back into the queue's memory from their run folders, after its own files were lost. On the rig."""
    if missing := missing_packages():
        fail(f"This machine has the laptop's install only ({', '.join(missing)} missing). Run: {rig_fix()}", USAGE)
    given = ["--home", str(home)] if home else []
    os.execve(sys.executable, [sys.executable, "-m", "daemon.reindex", *given], child_environment())  # noqa: S606 - no shell wanted


@click.group("gpus", invoke_without_command=True)
@with_rig
def gpus(session: Session) -> None:
    """Every slot: what it does, how busy, warm and hungry it is."""
    if click.get_current_context().invoked_subcommand is not None:
        return
    slots = session.client.gpus()
    if session.as_json:
        output.emit({"gpus": slots})
        return
    head = ("GPU", "NAME", "STATE", "JOB", "BUSY", "MEMORY", "TEMP", "POWER", "ID")
    output.show(output.table(head, (_gpu_row(slot) for slot in slots), give_way="ID"))
    for slot in slots:
        if held := slot.get("quarantine"):
            tried = f" A check: {held['check']}." if held.get("check") else ""
            output.say(
                f"GPU {slot['index']} is out of service since {output.clock(held['since'])}: {held['reason']}.{tried}"
            )
            output.say(
                f"  `overnight gpus check {slot['index']}` tries it, `overnight gpus release {slot['index']}` puts it back."
            )


@gpus.command("release")
@click.argument("gpu")
@with_rig
def release_gpu(session: Session, gpu: str) -> None:
    """Put a GPU (number or UUID) that had a fault back into service."""
    uuid = _uuid(session, gpu)
    _told(session, session.client.release_gpu(uuid), f"In service: {uuid}.")


@gpus.command("check")
@click.argument("gpu")
@with_rig
def check_gpu(session: Session, gpu: str) -> None:
    """Let the rig compute on a GPU that had a fault; when that goes well, it is put back."""
    uuid = _uuid(session, gpu)
    _told(
        session,
        session.client.check_gpu(uuid),
        f"Asked: {uuid} is checked when it is free; `overnight gpus` tells how it went.",
    )


def _told(session: Session, answer: Json, words: str) -> None:
    if session.as_json:
        output.emit(answer)
    else:
        output.say(words, err=False)


@click.command("rig")
@with_rig
def rig(session: Session) -> None:
    """Settings in force, window, versions, health."""
    facts = session.client.rig()
    if session.as_json:
        output.emit(facts)
        return
    for line in _flat(facts):
        output.say(line, err=False)


@click.command("pause")
@click.argument("gpus", nargs=-1, metavar="[GPU]...")
@click.option("--now", is_flag=True, help="What runs there saves its work and goes back to the queue.")
@with_rig
def pause(session: Session, /, gpus: tuple[str, ...], now: bool) -> None:
    """Start nothing more on these GPUs (numbers or UUIDs), or on the whole rig. Kept over restarts. What runs goes on."""
    _paused(session, gpus, lambda uuid: session.client.pause(uuid, now=now), "takes no new job")


@click.command("resume")
@click.argument("gpus", nargs=-1, metavar="[GPU]...")
@with_rig
def resume(session: Session, /, gpus: tuple[str, ...]) -> None:
    """Let these GPUs, or the whole rig, take jobs again."""
    _paused(session, gpus, session.client.resume, "takes jobs again")


def _paused(session: Session, gpus: Sequence[str], change: Callable[[str], Json], words: str) -> None:
    """Change the rig, or each of its named GPUs, and tell what that means for what runs and waits."""
    uuids = [_uuid(session, gpu) for gpu in gpus]  # all are known before one is changed
    answers = [change(uuid) for uuid in uuids or [""]]
    if session.as_json:
        output.emit(answers[0] if len(answers) == 1 else {"gpus": answers})
        return
    for answer in answers:
        if uuids:
            title = answer["name"] if answer["id"].startswith("cpu:") else f"GPU {answer['index']} ({answer['name']})"
            output.say(f"{title} {words}.{_what_runs(session, answer)}", err=False)
        else:
            output.say(f"The rig {answer['name']} {words}.{_what_waits(answer)}", err=False)


def _what_runs(session: Session, slot: Json) -> str:
    if not slot.get("job"):
        return "" if slot["paused"] else " It is free."
    job = session.client.job(slot["job"])
    if job.get("wish"):
        return f" Job {job['id']} was asked to save its work and give way."
    eta_s = (job.get("progress") or {}).get("eta_s")
    return f" Job {job['id']} goes on{f' until about {output.eta_clock(eta_s)}' if eta_s is not None else ''}."


def _what_waits(rig: Json) -> str:
    running, waiting = rig["jobs"].get("running", 0), rig["jobs"].get("queued", 0)
    told = f" {running} running, {waiting} waiting."
    if not rig["paused"] and not rig["window"]["open"]:
        told += f" Its window opens at {output.clock(rig['window']['opens_at'])}."
    return told


@click.command("token")
@with_rig
def token(session: Session) -> None:
    """On the rig: where its token is, and a link that logs a browser in."""
    path = session.access.home / "token"
    if not path.exists():
        fail(f"{path} is not there: the rig makes it at its first start (`overnight up`). On another machine, copy it from the rig.", NOT_FOUND)  # fmt: skip
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        fail(f"{path} can be read by others. Run: chmod 600 {path}", FAILED)
    link = session.client.login_url()
    if session.as_json:
        output.emit({"token_file": str(path), "login_url": link})
    else:
        output.say(f"Token: {path}\nOpen once within 10 minutes: {link}", err=False)


@click.command("config")
@click.option("--explain", is_flag=True, help="Say where each value comes from.")
@click.option("--server", metavar="URL", help="As in the other commands.")
@click.option("--token", metavar="TOKEN", help="As in the other commands.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show_config(explain: bool, server: str | None, token: str | None, as_json: bool) -> None:
    """Which rig the commands speak to, and from where they know."""
    access = config.resolve(os.environ, server=server, token=token)
    # never the token itself: this is what people paste into a bug report
    secret = config.Value(f"{access.token.text[:4]}…" if access.token.text else "", access.token.origin)
    values = {"url": access.url, "token": secret}
    if as_json:
        output.emit({name: {"value": value.text, "origin": value.origin} for name, value in values.items()})
        return
    for name, value in values.items():
        output.say(f"{name:<6} {value.text}{f'   ({value.origin})' if explain else ''}", err=False)
    if explain:
        output.say(f"\nOrder: flag, OVERNIGHT_URL and OVERNIGHT_TOKEN, {config.config_path(os.environ)}, the rig in {access.home}, default.", err=False)  # fmt: skip


COMMANDS = (up, reindex, gpus, rig, pause, resume, token, show_config)


def _uuid(session: Session, text: str) -> str:
    """A GPU by its number, its id, or the beginning of it."""
    slots = session.client.gpus()
    by_index = [slot["id"] for slot in slots if str(slot["index"]) == text]
    by_id = [slot["id"] for slot in slots if slot["id"] == text or slot["id"].startswith(text)]
    found = by_index or by_id
    if len(found) != 1:
        there = ", ".join(f"{slot['index']} ({slot['id']})" for slot in slots)
        fail(f"{text!r} is {'no GPU' if not found else 'more than one GPU'} of this rig; there are {there}", NOT_FOUND if not found else USAGE)  # fmt: skip
    return str(found[0])


def _gpu_row(slot: Mapping[str, Any]) -> list[str]:
    sample = slot.get("sample") or {}
    age_s = slot.get("sample_age_s")
    stale = f" ({output.duration(age_s)} old)" if age_s is not None and age_s > 10 else ""
    memory = sample.get("memory_used_bytes")
    total = sample.get("memory_total_bytes") or slot.get("memory_bytes")
    job = slot.get("job")
    return [
        str(slot["index"]),
        slot["name"],
        ("paused" if slot.get("paused") else str(slot.get("state") or "")) + stale,
        str(job.get("id") if isinstance(job, dict) else job or ""),
        _unit(sample.get("utilization_ratio"), "%", 100),
        f"{output.size(memory)} of {output.size(total)}" if memory is not None else output.size(total or None),
        _unit(sample.get("temperature_c"), "°C"),
        _unit(sample.get("power_w"), "W"),
        slot["id"],
    ]


def _unit(value: float | None, unit: str, factor: float = 1) -> str:
    return "" if value is None else f"{value * factor:.0f} {unit}"


def _flat(value: Any, name: str = "") -> list[str]:
    if isinstance(value, dict) and value:
        return [line for key, item in value.items() for line in _flat(item, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [line for at, item in enumerate(value) for line in _flat(item, f"{name}[{at}]")]
    return [] if value in (None, {}, []) else [f"{name} = {output.clean_line(value)}"]
