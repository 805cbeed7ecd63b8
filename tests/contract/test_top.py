"""`overnight top` on a terminal: what it shows, how it ends, and that a slow or broken link does not stop it."""

import contextlib
import fcntl
import io
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from live_api import LiveApi
from until import until

from api.cli.top import Seen, screen
from daemon.rig import Slot
from daemon.samples import now_path, publish

ROOT = Path(__file__).parents[2]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")
LINES, COLUMNS = 30, 140
GPU = {
    "name": "NVIDIA GeForce RTX 3090", "index": 0, "state": "ok", "utilization_ratio": 0.97, "memory_used_bytes": 21 << 30,
    "memory_total_bytes": 24 << 30, "temperature_c": 71, "power_w": 345.0, "power_limit_w": 350.0, "processes": [],
    "throttle_reasons": ["sw_power_cap"],
}  # fmt: skip


@dataclass
class Terminal:
    """A person at a terminal in which `overnight top` runs."""

    process: "subprocess.Popen[bytes]"
    descriptor: int
    seen: str = ""

    def text(self) -> str:
        """Everything that was drawn until now, without the steering."""
        while select.select([self.descriptor], [], [], 0)[0]:
            try:
                self.seen += os.read(self.descriptor, 65_536).decode(errors="replace")
            except OSError:  # the other end is closed
                break
        return ESCAPES.sub("", self.seen)

    def until_shown(self, words: str, within_s: float = 20.0) -> None:
        until(lambda: words in self.text(), within_s=within_s, evidence=self.text)

    def press(self, key: bytes) -> None:
        os.write(self.descriptor, key)

    def ended(self) -> int:
        """The exit status. What is drawn meanwhile is read: a full terminal would hold the program up."""
        until(lambda: (self.text(), self.process.poll() is not None)[1], evidence=self.text)
        assert self.process.returncode is not None
        return self.process.returncode


@contextlib.contextmanager
def terminal(url: str, token: str, *flags: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", "from api.cli import overnight; overnight()", "top", *flags],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, start_new_session=True,
        env={**environment, "OVERNIGHT_URL": url, "OVERNIGHT_TOKEN": token, "TERM": "xterm-256color"},
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.fixture
def rig(live: LiveApi) -> LiveApi:
    """A rig with one busy GPU and a waiting job."""
    live.store.describe_rig("rig", {"slots": [Slot("GPU-1", GPU["name"], 0, 24 << 30).to_json()]})  # type: ignore[arg-type]
    publish(now_path(live.settings.home), {"at": time.time(), "source": "nvml", "problem": None, "slots": {"GPU-1": GPU}, "pid": 1})  # fmt: skip
    return live


def submit(rig: LiveApi, name: str) -> str:
    with rig.client() as client:
        return str(client.post("/api/v1/jobs", json={"kind": "command", "argv": ["true"], "name": name}).json()["id"])


def test_it_shows_gpus_and_jobs_and_ends_with_q(rig: LiveApi) -> None:
    job = submit(rig, "first night")
    with terminal(rig.url, rig.token, "--interval", "0.2") as screen:
        screen.until_shown("first night")
        for words in ("RTX 3090", "97 %", "21.0/24 GiB", "71 °C", "345/350 W", "sw-power-cap", "q ends"):
            assert words in screen.text()
        later = submit(rig, "second night")
        screen.until_shown("second night")
        assert job in screen.text() and later in screen.text()
        screen.press(b"\x1b[A")  # an arrow: not the key Esc
        screen.press(b"q")
        assert screen.ended() == 0
        assert "\x1b[?1049l" in screen.seen  # the terminal is as it was


def test_ctrl_c_ends_it_too(rig: LiveApi) -> None:
    with terminal(rig.url, rig.token) as screen:
        screen.until_shown("q ends")
        screen.press(b"\x03")
        assert screen.ended() == 0
        assert "Traceback" not in screen.text()


def test_a_signal_from_outside_leaves_the_terminal_in_order(rig: LiveApi) -> None:
    with terminal(rig.url, rig.token) as screen:
        screen.until_shown("q ends")
        screen.process.send_signal(signal.SIGINT)
        assert screen.ended() == 0
        assert "\x1b[?25h" in screen.seen  # the cursor is back


@contextlib.contextmanager
def slow_link(url: str, delay_s: float) -> Iterator[tuple[str, threading.Event]]:
    """A proxy that keeps every piece back for a while; with the event set it refuses everybody."""
    host, port = url.removeprefix("http://").split(":")
    cut = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not cut.is_set() and (piece := source.recv(65_536)):
                cut.wait(delay_s)
                target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()

    def serve() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            if cut.is_set():
                near.close()
                continue
            far = socket.create_connection((host, int(port)))
            for ends in ((near, far), (far, near)):
                threading.Thread(target=carry, args=ends, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", cut
    finally:
        cut.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_over_a_slow_link_a_key_is_heard_at_once(rig: LiveApi) -> None:
    with slow_link(rig.url, 0.4) as (url, _), terminal(url, rig.token, "--interval", "0.2") as screen:
        screen.until_shown("Asking the rig")
        screen.until_shown("RTX 3090")
        screen.press(b"q")  # while the next look is under way
        assert screen.ended() == 0


def test_a_broken_link_is_told_and_what_was_seen_last_stays(rig: LiveApi) -> None:
    with slow_link(rig.url, 0.0) as (url, cut), terminal(url, rig.token, "--interval", "0.2") as screen:
        screen.until_shown("RTX 3090")
        cut.set()
        screen.until_shown("gave no answer")
        screen.until_shown("Shown:")
        screen.press(b"q")
        assert screen.ended() == 0


def test_a_wrong_token_ends_it_with_a_sentence(rig: LiveApi) -> None:
    with terminal(rig.url, "wrong") as screen:
        assert screen.ended() == 4
        assert "does not know this token" in screen.text()


def test_without_a_terminal_it_prints_one_picture(rig: LiveApi) -> None:
    environment = {**os.environ, "OVERNIGHT_URL": rig.url, "OVERNIGHT_TOKEN": rig.token, "COLUMNS": "140"}
    argv = [sys.executable, "-c", "from api.cli import overnight; overnight()", "top"]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "RTX 3090" in done.stdout and "\x1b" not in done.stdout


def test_a_name_cannot_steer_the_terminal_and_many_jobs_are_counted() -> None:
    from rich.console import Console

    jobs = [{"id": str(n), "state": "queued", "name": f"\x1b]0;evil\x07[red]job {n}"} for n in range(30)]
    console = Console(width=120, markup=False, record=True, file=io.StringIO())
    console.print(screen(Seen(0.0, [], [], jobs, {"name": "rig"}), age_s=1.0, height=20))
    text = console.export_text()
    assert "\x1b" not in text and "[red]job 0" in text
    assert "and 18 more" in text
    assert len(text.rstrip().splitlines()) <= 20
