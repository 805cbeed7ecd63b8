"""How long the API takes to end: with nobody connected, and with many streams open, of which half never read what they get."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

from figures import Figures
from rig import Rig, rig, until

STREAMS = 60


def closing(*, quick: bool) -> Iterator[Figures]:
    """From SIGTERM to the end of the process; the supervisor starts the next one."""
    figures = Figures("ms")
    with rig() as ours:
        for _ in range(2 if quick else 8):
            for streams in (0, STREAMS):
                figures.add(f"{streams} streams open", _ended_after_s(ours, streams))
    yield figures


def _ended_after_s(ours: Rig, streams: int) -> float:
    pid = ours.processes()["api"]
    with ExitStack() as stack:
        for number in range(streams):
            stream = stack.enter_context(socket.create_connection(("127.0.0.1", ours.settings.port)))
            token = ours.settings.token_file.read_text().strip()
            stream.sendall(
                f"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
            )
            if number % 2:
                stream.recv(4096)
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        until(lambda: not os.path.exists(f"/proc/{pid}"), within_s=30, what="the API ended", poll_s=0.002)
        took_s = time.monotonic() - began
    until(lambda: ours.processes().get("api") not in (None, pid), within_s=60, what="the next API began")
    until(lambda: _answers(ours), within_s=60, what="the next API answers")
    return took_s


def _answers(ours: Rig) -> bool:
    try:
        socket.create_connection(("127.0.0.1", ours.settings.port), 1).close()
    except OSError:
        return False
    return True
