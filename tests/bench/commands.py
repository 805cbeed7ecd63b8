"""How long a command line makes its user wait: help, and a list from a running rig. Beside RQ's own and a bare Python."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from figures import Figures
from plain import plain_rq
from rig import rig

BIN = Path(sys.executable).parent
NULL = subprocess.DEVNULL


def cli(*, quick: bool) -> Iterator[Figures]:
    """From the start of the process to its end, its output thrown away."""
    figures = Figures("ms")
    with rig() as ours, plain_rq(0) as plain:
        ours.store.pause(ours.settings.rig)
        ours.post("/api/v1/jobs/batch", {"jobs": [{"kind": "command", "argv": ["true"]}] * 100})
        token = ours.settings.token_file.read_text().strip()
        environment = {
            **os.environ,
            "OVERNIGHT_URL": f"http://127.0.0.1:{ours.settings.port}",
            "OVERNIGHT_TOKEN": token,
        }
        url = f"unix://{plain.redis.connection_pool.connection_kwargs['path']}"
        programs: dict[str, list[Path | str]] = {
            "submit --help": [BIN / "submit", "--help"],
            "overnight --help": [BIN / "overnight", "--help"],
            "overnight ls (100 jobs wait)": [BIN / "overnight", "ls"],
            "plain RQ: rq info": [BIN / "rq", "info", "--url", url],
            "python -c pass": [sys.executable, "-c", "pass"],
        }
        for _ in range(4 if quick else 15):
            for name, argv in programs.items():
                figures.add(name, _run(argv, environment))
    yield figures


def _run(argv: list[Path | str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(argv, env=environment, check=True, stdin=NULL, stdout=NULL, stderr=NULL, timeout=60)
    return time.perf_counter() - began
