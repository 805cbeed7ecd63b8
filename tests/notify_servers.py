"""Real servers on loopback that take messages, or do not: HTTP, mail, and one that never answers."""

import base64
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Web:
    """An HTTP server that notes what it is asked; answers with the next status of `statuses`, then with the last one."""

    url: str
    asked: list[Asked] = field(default_factory=list)
    statuses: list[int] = field(default_factory=lambda: [200])
    headers: dict[str, str] = field(default_factory=dict)
    #: Called before it answers.
    before: Callable[[], None] = lambda: None


@contextmanager
def web(context: ssl.SSLContext | None = None) -> Iterator[Web]:
    """One on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def _take(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            found.asked.append(Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            found.before()
            status = found.statuses.pop(0) if len(found.statuses) > 1 else found.statuses[0]
            self.send_response(status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"OK")

        do_GET = do_POST = _take

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    found = Web(f"{'https' if context else 'http'}://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Post:
    """A mail server that notes what it takes."""

    port: int
    mails: list[str] = field(default_factory=list)
    logins: list[tuple[str, str]] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)
    password: str = "open sesame"


@contextmanager
def post(context: ssl.SSLContext | None = None, *, security: str = "none") -> Iterator[Post]:
    """The least of RFC 5321 that a client needs, with AUTH PLAIN and STARTTLS."""
    listener = socket.create_server(("127.0.0.1", 0))
    found = Post(listener.getsockname()[1])
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        secure = security == "ssl"
        if secure:
            assert context is not None
            connection = context.wrap_socket(connection, server_side=True)
        connection.settimeout(20)
        with connection:
            _talk(connection, found, context, security, secure)

    def accept() -> None:
        while not ended.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_quietly, args=(serve, connection), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield found
    ended.set()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def _quietly(serve: Callable[[socket.socket], None], connection: socket.socket) -> None:
    try:
        serve(connection)
    except OSError:
        return  # the client has gone, which some tests want


def _talk(
    connection: socket.socket,
    found: Post,
    context: ssl.SSLContext | None,
    security: str,
    secure: bool,
    *,
    greets: bool = True,
) -> None:
    reader = connection.makefile("rb")

    def say(text: str) -> None:
        connection.sendall(text.encode() + b"\r\n")

    if greets:
        say("220 test")
    while command := reader.readline().decode().strip():
        verb = command.split()[0].upper()
        if verb == "EHLO":
            more = ["STARTTLS"] if security == "starttls" and not secure else []
            lines = ["test", *more, "AUTH PLAIN", "8BITMIME", "SMTPUTF8"]
            say("\r\n".join(f"250{'-' if n < len(lines) - 1 else ' '}{text}" for n, text in enumerate(lines)))
        elif verb == "STARTTLS":
            assert context is not None
            say("220 go on")
            with context.wrap_socket(connection, server_side=True) as inside:
                _talk(inside, found, context, security, True, greets=False)
            return
        elif verb == "AUTH":
            _, user, password = base64.b64decode(command.split()[2]).decode().split("\0")
            found.logins.append((user, password))
            say("235 welcome" if password == found.password else "535 5.7.8 wrong password")
        elif verb == "DATA":
            say("354 go on")
            lines = []
            while (text := reader.readline()) != b".\r\n":
                lines.append(text.decode())
            found.mails.append("".join(lines))
            found.encrypted.append(secure)
            say("250 taken")
        elif verb == "QUIT":
            say("221 bye")
            return
        else:
            say("250 fine")


@contextmanager
def silence() -> Iterator[tuple[int, list[socket.socket]]]:
    """A port that accepts every connection and never says a word: its number, and who has come."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                held.append(listener.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()[1], held
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    for connection in held:
        connection.close()


def certificate(folder: Path, names: Sequence[str] = ("IP:127.0.0.1",)) -> tuple[ssl.SSLContext, Path] | None:
    """A server's TLS and the certificate that trusts it; None where there is no openssl."""
    if shutil.which("openssl") is None:
        return None
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=test", "-addext", f"subjectAltName={','.join(names)}", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate
