"""Plain RQ beside us: stock workers and a private server of the same kind with the same settings (`appendfsync always`)."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from rig import short_folder, until
from rq import Queue

from daemon import redis_server
from daemon.settings import Settings

FUNCTIONS = Path(__file__).parent


class Plain:
    """A queue, and how many of its jobs have finished."""

    def __init__(self, home: Path, connection: "redis.Redis"):
        self.home, self.redis = home, connection
        self.queue = Queue("plain", connection=connection)

    def finished(self) -> int:
        return int(self.queue.finished_job_registry.get_job_count(cleanup=False))


@contextmanager
def plain_rq(workers: int) -> Iterator[Plain]:
    """A private server and stock workers, as `rq worker` starts them."""
    with short_folder() as home:
        server = redis_server.start(Settings(home=home))
        connection = redis.Redis(unix_socket_path=str(server.socket))
        processes = []
        try:
            for _ in range(workers):
                argv = [
                    str(Path(sys.executable).with_name("rq")),
                    "worker",
                    "--url",
                    f"unix://{server.socket}",
                    "--quiet",
                ]
                processes.append(
                    subprocess.Popen(
                        [*argv, "--path", str(FUNCTIONS), "plain"], cwd=home, env={**os.environ, "PYTHONPATH": ""},
                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    )
                )  # fmt: skip
            waiting = lambda: sum(c["cmd"] == "blmove" for c in connection.client_list()) == workers  # noqa: E731
            until(waiting, within_s=30, what="RQ's workers listen")
            yield Plain(home, connection)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(30)
            connection.close()
            server.stop()
