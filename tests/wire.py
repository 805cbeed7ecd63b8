"""A line to a server that can be cut, as a network is cut: connections stay open and nothing goes through."""

import contextlib
import select
import socket
import threading
from pathlib import Path


class Wire:
    """Listens on a TCP port and passes on to a unix socket, until it is cut."""

    def __init__(self, server: Path):
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._whole = threading.Event()
        self._whole.set()
        self._ended = False
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """From now on nothing goes through, and nobody is told."""
        self._whole.clear()

    def mend(self) -> None:
        """What was held back goes through."""
        self._whole.set()

    def end(self) -> None:
        self._ended = True
        self._whole.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._ended:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(near,), daemon=True).start()

    def _pass(self, near: socket.socket) -> None:
        with near, socket.socket(socket.AF_UNIX) as far, contextlib.suppress(OSError):
            self._whole.wait()
            far.connect(str(self._server))
            while not self._ended:
                for one in select.select([near, far], [], [], 0.2)[0]:
                    self._whole.wait()
                    if not (part := one.recv(65_536)):
                        return
                    (far if one is near else near).sendall(part)
