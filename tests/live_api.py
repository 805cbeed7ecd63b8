"""A real `python -m api`, requests that no client library would send, and the smallest job."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
from fastapi import FastAPI
from until import until

from daemon.settings import Settings
from daemon.store import Store

COMMAND = {"kind": "command", "argv": ["true"]}
NOW = 1_795_000_000.0


@dataclass
class LiveApi:
    """A running `python -m api` with an embedded Redis of its own."""

    settings: Settings
    store: Store
    process: "subprocess.Popen[bytes]"
    url: str
    token: str
    log: Path

    def client(self, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, **options)


def start_api(home: Path, log: Path, **environment: str) -> "subprocess.Popen[bytes]":
    """`python -m api` with this home and no other settings from outside."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OVERNIGHT_")}
    own = {"OVERNIGHT_HOME": str(home), "OVERNIGHT_RIG": "rig", "OVERNIGHT_PORT": "0", **environment}
    with log.open("ab") as output:
        return subprocess.Popen([sys.executable, "-m", "api"], env={**clean, **own}, stdout=output, stderr=output)


def address_of(home: Path, process: "subprocess.Popen[bytes]", log: Path) -> dict[str, Any]:
    """What the process wrote into api.json when it listened."""

    def read() -> dict[str, Any] | None:
        assert process.poll() is None, log.read_text()
        try:
            address: dict[str, Any] = json.loads((home / "api.json").read_text())
        except FileNotFoundError:
            return None
        return address if address["pid"] == process.pid else None

    found = until(read, within_s=30, evidence=log.read_text)
    assert found is not None
    return found


Headers = list[tuple[bytes, bytes]]


def raw_request(
    app: FastAPI, method: str, path: str, headers: Headers, server: tuple[str, int] = ("127.0.0.1", 80)
) -> tuple[int, bytes]:
    """Status and body for a request as it stands: clients tidy up paths and headers, attackers do not."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),  # once, as uvicorn does
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "client": ("127.0.0.1", 1),
        "server": server,
        "headers": headers,
    }

    received = False

    async def receive() -> dict[str, Any]:
        nonlocal received
        if received:
            await asyncio.Event().wait()  # the caller stays
        received = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return int(sent[0]["status"]), b"".join(message.get("body", b"") for message in sent[1:])
