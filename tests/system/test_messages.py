"""Messages of a real rig: its own process, killed while it sends, beside a mail server that never answers."""

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from notify_servers import Web, silence, web
from until import until

from api.cli import overnight
from daemon import process_tree
from daemon.notify.outbox import FILE, Outbox
from jobs.model import State

CONFIG = """
notify_gap_s = 0
[notify.phone]
kind = "ntfy"
url = "{phone}/HIDDEN-topic"
token = "secret:NTFY_TOKEN"
[notify.mail]
kind = "email"
host = "127.0.0.1"
port = {mail}
security = "none"
to = ["me@example.org"]
[notify.wrong]
kind = "webhook"
url = "http://127.0.0.1:{closed}/HIDDEN-path"
secrets = ["secret:HOOK"]
"""
SECRETS = f'NTFY_TOKEN = "tk_CANARY0123"\nHOOK = "whsec_{"QUJD" * 11}"\n'


class Phone:
    """A rig whose messages go to a server here, to one that is silent, and to one that is not there."""

    def __init__(self, rig: Any, server: Web, mails: list[Any]):
        self.rig, self.server, self.mails = rig, server, mails

    def command(self, *argv: str) -> Result:
        address = json.loads((self.rig.settings.home / "api.json").read_text())
        token = (self.rig.settings.home / "token").read_text().strip()
        environment = {"OVERNIGHT_URL": address["url"], "OVERNIGHT_TOKEN": token}
        return CliRunner(env=environment).invoke(overnight, list(argv))

    def messenger(self) -> int:
        """The pid of the process that sends."""

        def find() -> int:
            mine = process_tree.children(self.rig.daemon.pid)
            return next((p for p, line in self.rig.processes().items() if "daemon.notify" in line and p in mine), 0)

        return until(find, within_s=30, evidence=self.rig.evidence)

    def titles(self) -> list[str]:
        return [asked.json["title"] for asked in self.server.asked]

    def until_told(self, title: str, times: int = 1) -> None:
        until(lambda: self.titles().count(title) >= times, within_s=60, evidence=lambda: (self.titles(), self.rig.evidence()))  # fmt: skip


@pytest.fixture
def phone(make_rig: Any, home: Path) -> Iterator[Phone]:
    with ExitStack() as stack:
        server = stack.enter_context(web())
        port, held = stack.enter_context(silence())
        rig = make_rig(start=False)
        closed = port_that_is_closed()
        (home / "config.toml").write_text(CONFIG.format(phone=server.url, mail=port, closed=closed))
        (home / "secrets.toml").write_text(SECRETS)
        (home / "secrets.toml").chmod(0o600)
        rig.start()
        until(lambda: (home / "api.json").exists(), within_s=60, evidence=rig.evidence)
        until(lambda: has_looked(home), within_s=60, evidence=rig.evidence)
        yield Phone(rig, server, held)


def has_looked(home: Path) -> bool:
    """Whether the messenger knows from where on ends are news."""
    if not (home / FILE).exists():
        return False
    with closing(Outbox.open(home)) as outbox:
        return outbox.recall("place") is not None


def port_that_is_closed() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_a_message_survives_kill_9_in_the_middle_of_its_sending_and_nobody_waits_for_a_silent_server(phone: Phone) -> None:  # fmt: skip
    rig, killed = phone.rig, []
    first = phone.messenger()

    def kill() -> None:
        if not killed:
            killed.append(first)
            os.kill(first, signal.SIGKILL)

    phone.server.before = kill
    job = rig.count(1, 0.01, notify="end", name="the job")
    assert rig.until_ended(job).state is State.SUCCEEDED
    phone.until_told("the job done", times=2)
    assert len({asked.json["sequence_id"] for asked in phone.server.asked}) == 1, "the same message, known by its id"
    until(lambda: phone.mails, within_s=60, evidence=rig.evidence)

    # the mail hangs; the rig plans, and the phone hears
    second = rig.count(1, 0.01, notify="end", name="the next job")
    assert rig.until_ended(second).state is State.SUCCEEDED
    phone.until_told("the next job done")

    told = phone.command("notify", "test", "phone")
    assert (told.exit_code, told.output) == (0, "phone: sent\n"), told.output
    refused = phone.command("notify", "test", "wrong")
    assert (refused.exit_code, refused.output) == (1, "wrong: not sent: Connection refused\n"), refused.output
    assert "did you mean 'phone'" in phone.command("notify", "test", "phon").output
    listed = phone.command("notify").output
    assert re.search(r"phone +ntfy +report, urgent, job +\d\d:\d\d", listed), listed
    assert "wrong has been failing since" in listed
    assert "The report goes out at 07:00." in listed

    everything = rig.evidence() + listed + phone.command("notify", "--json").output + phone.command("rig").output
    logs = "".join(path.read_text(errors="replace") for path in rig.settings.logs.glob("*.log"))
    lines = " ".join(rig.processes().values())
    for secret in ("CANARY", "HIDDEN", "QUJDQUJD"):
        assert secret not in everything + logs + lines, "s34"
    assert phone.server.asked[0].headers["authorization"] == "Bearer tk_CANARY0123"

    assert rig.stop() == 0
    log = (rig.settings.home / "daemon.log").read_text()
    assert "messages did not stop" not in log, "the mail on its way holds up no stop"


def test_a_rig_without_channels_has_no_messenger(rig: Any) -> None:
    assert not [line for line in rig.processes().values() if "daemon.notify" in line]
