"""How each kind of channel sends one message. Each returns when it has arrived and raises otherwise, after a bounded time.

No redirect is followed and no proxy is asked: what is connected to is what config.toml names (`daemon.notify.addresses`).
"""

import base64
import binascii
import hashlib
import hmac
import http.client
import json
import math
import smtplib
import socket
import ssl
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from daemon.night.kept import report_path
from daemon.notify.addresses import connect, within
from daemon.notify.config import Apprise, Channel, Email, Ntfy, Ping, Webhook, opened
from daemon.notify.message import EVENT, Kind, Message, line
from daemon.notify.outbox import Delivery

HTTP_TIMEOUT_S, MAIL_TIMEOUT_S, APPRISE_TIMEOUT_S = 10.0, 30.0, 60.0
ANSWER_BYTES = 4_096
#: Larger pages are not mailed, nor those that were made before the night was over.
ATTACHED_BYTES, FRESH_S = 5_000_000, 900.0
USER_AGENT = "overnight"
PORTS = {"starttls": 587, "ssl": 465, "none": 25}
#: A key of Standard Webhooks: 24 to 64 bytes.
KEY_BYTES = range(24, 65)


class NotSent(Exception):
    """It has not arrived; the message says why, in words without secrets."""

    def __init__(self, words: str, *, retry_after_s: float = 0.0, gone: bool = False):
        self.retry_after_s, self.gone = retry_after_s, gone
        super().__init__(words)


@dataclass(frozen=True)
class Sending:
    """What every sender needs beside the message."""

    rig: str
    #: Where the page is reached, for links; "" when nobody knows.
    page: str
    now: float
    secrets: Mapping[str, str]
    #: The rig's home, for the file that goes with a report.
    home: Path | None = None

    def link(self, message: Message) -> str:
        """The page that the message is about."""
        return f"{self.page}{message.path}" if self.page else ""


def send(delivery: Delivery, channel: Channel, sending: Sending) -> None:
    """Send it. Raises NotSent, OSError, smtplib.SMTPException, SecretMissing."""
    match channel:
        case Ntfy():
            _ntfy(delivery, channel, sending)
        case Email():
            _email(delivery, channel, sending)
        case Webhook():
            _webhook(delivery, channel, sending)
        case Apprise():
            _apprise(delivery, channel, sending)
        case Ping():
            ping(channel, sending, well=True)
        case _:
            raise NotSent(f"nobody knows how to send to {type(channel).__name__}")


# -- ntfy -------------------------------------------------------------------------------------------------------------------


def _ntfy(delivery: Delivery, channel: Ntfy, sending: Sending) -> None:
    url = opened(channel.url, sending.secrets)
    server, _, topic = url.rstrip("/").rpartition("/")
    title, text = delivery.message.words(names=channel.tells_names, short=channel.short)
    body: dict[str, Any] = {
        "topic": topic,
        "title": title,
        "message": text or title,
        "priority": delivery.message.priority,
        "tags": list(delivery.message.tags),
        "sequence_id": delivery.id,
    }
    if link := sending.link(delivery.message):
        body["click"] = link
        body["actions"] = [{"action": "view", "label": "Report" if delivery.message.kind is Kind.REPORT else "Open", "url": link}]  # fmt: skip
    headers = {"Content-Type": "application/json"}
    if channel.token:
        headers["Authorization"] = f"Bearer {opened(channel.token, sending.secrets)}"
    request("POST", f"{server}/", json.dumps(body).encode(), headers)


# -- e-mail -----------------------------------------------------------------------------------------------------------------


def _email(delivery: Delivery, channel: Email, sending: Sending) -> None:
    mail = mail_of(delivery, channel, sending)
    tls = ssl.create_default_context()
    connection = connect(channel.host, channel.port or PORTS[channel.security], timeout_s=HTTP_TIMEOUT_S)
    with connection, within(connection, MAIL_TIMEOUT_S):
        server = smtplib.SMTP(local_hostname=_literal(connection), timeout=HTTP_TIMEOUT_S)
        server._host = channel.host  # type: ignore[attr-defined]  # what starttls() checks the certificate against
        wrapped = channel.security == "ssl"
        server.sock = tls.wrap_socket(connection, server_hostname=channel.host) if wrapped else connection
        server.file = None
        try:
            code, words = server.getreply()
            if code != 220:
                raise smtplib.SMTPConnectError(code, words)
            if channel.security == "starttls":
                server.starttls(context=tls)
            if channel.user:
                password = opened(channel.password, sending.secrets) if channel.password else ""
                server.login(channel.user, password)
            server.send_message(mail)
            server.quit()
        finally:
            server.close()


def _literal(connection: socket.socket) -> str:
    """How we call ourselves there: by our address, for which nobody needs to be asked."""
    address = str(connection.getsockname()[0])
    return f"[IPv6:{address.partition('%')[0]}]" if ":" in address else f"[{address}]"


def mail_of(delivery: Delivery, channel: Email, sending: Sending) -> EmailMessage:
    """The message as a mail. Its Message-ID is the same at every try."""
    title, text = delivery.message.words(names=channel.tells_names, short=False)
    mail = EmailMessage()
    mail["Subject"] = f"[{sending.rig}] {title}"
    mail["From"] = channel.sender or (channel.user if "@" in channel.user else f"overnight@{sending.rig}")
    mail["To"] = ", ".join(channel.to)
    mail["Date"] = format_datetime(datetime.fromtimestamp(delivery.message.at, UTC))
    mail["Message-ID"] = f"<{delivery.id}@{sending.rig}.overnight>"
    mail["Auto-Submitted"] = "auto-generated"
    if delivery.message.priority >= 4:
        mail["Importance"] = "high"
    link = sending.link(delivery.message)
    mail.set_content(f"{text}\n{f'{chr(10)}{link}{chr(10)}' if link else ''}")
    if channel.attach and channel.tells_names and (page := _report_page(delivery.message, sending.home)):
        mail.add_attachment(page, subtype="html", filename=f"overnight-{delivery.message.data['night']}.html")
    return mail


def _report_page(message: Message, home: Path | None) -> str | None:
    """The night's page as it was kept for this report; None when it was not."""
    day = message.data.get("night")
    if message.kind is not Kind.REPORT or home is None or not day:
        return None
    path = report_path(home, date.fromisoformat(str(day)), "html")
    try:
        facts = path.stat()
        usable = facts.st_size <= ATTACHED_BYTES and facts.st_mtime >= message.at - FRESH_S
        return path.read_text(encoding="utf-8") if usable else None
    except OSError:
        return None  # no page was kept: the mail says the night in words


# -- webhooks ---------------------------------------------------------------------------------------------------------------


def _webhook(delivery: Delivery, channel: Webhook, sending: Sending) -> None:
    body = json.dumps(event_of(delivery, channel, sending), separators=(",", ":")).encode()
    keys = [opened(secret, sending.secrets) for secret in channel.secrets]
    request("POST", opened(channel.url, sending.secrets), body, signed(delivery.id, body, keys, now=sending.now))


def event_of(delivery: Delivery, channel: Channel, sending: Sending) -> dict[str, Any]:
    """The event as Standard Webhooks has it: type, timestamp, data."""
    message = delivery.message
    title, text = message.words(names=channel.tells_names, short=False)
    data = dict(message.data) if channel.tells_names else {k: v for k, v in message.data.items() if k != "name"}
    return {
        "type": EVENT[message.kind],
        "timestamp": datetime.fromtimestamp(message.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": {
            "rig": sending.rig,
            "title": title,
            "text": text,
            "priority": message.priority,
            "url": sending.link(message) or None,
            **data,
        },
    }


def signed(message_id: str, body: bytes, secrets: list[str], *, now: float) -> dict[str, str]:
    """The headers of Standard Webhooks 1.0.0: one signature for each secret."""
    stamp = str(int(now))
    content = f"{message_id}.{stamp}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(key_of(secret), content, hashlib.sha256)).decode() for secret in secrets]
    return {
        "Content-Type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": stamp,
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def key_of(secret: str) -> bytes:
    """The key in `whsec_<base64>`. Raises NotSent."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith("whsec_") or len(key) not in KEY_BYTES:
        raise NotSent("the webhook's secret is not whsec_ and the base64 of 24 to 64 bytes")
    return key


# -- Apprise ----------------------------------------------------------------------------------------------------------------


def _apprise(delivery: Delivery, channel: Apprise, sending: Sending) -> None:
    """In a process of its own: it is large, and its plugins wait as long as they like."""
    title, text = delivery.message.words(names=channel.tells_names, short=True)
    link = sending.link(delivery.message)
    order = {
        "url": opened(channel.url, sending.secrets),  # on stdin: others see a command's arguments
        "title": title,
        "body": f"{text}\n{link}" if link else text or title,
        "type": "warning" if delivery.message.priority >= 4 else "info",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "daemon.notify.by_apprise"],
            input=json.dumps(order), text=True, capture_output=True, timeout=APPRISE_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NotSent(f"Apprise was not done within {APPRISE_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise NotSent(line(said[-1])[:300] if said else f"Apprise ended with status {done.returncode}")


# -- the dead-man ping ------------------------------------------------------------------------------------------------------


def ping(channel: Ping, sending: Sending, *, well: bool, because: str = "") -> None:
    """Tell the switch how the rig is. Raises like `send`."""
    url = opened(channel.url, sending.secrets)
    if well:
        request("GET", url, None, {})
        return
    if channel.fail_url is not None:
        url = opened(channel.fail_url, sending.secrets)
    elif "/api/push/" in url:  # Uptime Kuma has one address for both
        parts = urlsplit(url)
        told = {**dict(parse_qsl(parts.query)), "status": "down", "msg": because[:200]}
        request("GET", parts._replace(query=urlencode(told)).geturl(), None, {})
        return
    else:
        parts = urlsplit(url)
        url = parts._replace(path=f"{parts.path.rstrip('/')}/fail").geturl()
    request("POST", url, because.encode(), {"Content-Type": "text/plain; charset=utf-8"})


# -- HTTP -------------------------------------------------------------------------------------------------------------------


def request(method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> None:
    """One request that must end with 2xx within `HTTP_TIMEOUT_S`. Raises NotSent, OSError."""
    parts = urlsplit(url)
    host, tls = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    connection = connect(host, port, timeout_s=HTTP_TIMEOUT_S)
    with connection, within(connection, HTTP_TIMEOUT_S):
        secure = ssl.create_default_context().wrap_socket(connection, server_hostname=host) if tls else connection
        with secure:
            client = http.client.HTTPConnection(host, port)
            client.sock = secure
            target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (f"?{parts.query}" if parts.query else "")
            own = {"User-Agent": USER_AGENT, "Host": parts.netloc, "Connection": "close"}
            client.request(method, target, body, {**own, **headers})
            answer = client.getresponse()
            answer.read(ANSWER_BYTES)
    if not 200 <= answer.status < 300:
        raise _refusal(answer)


def _refusal(answer: http.client.HTTPResponse) -> NotSent:
    words = f"HTTP status {answer.status}"
    if 300 <= answer.status < 400:
        words += ": redirects are not followed"
    try:
        wait_s = float(answer.getheader("Retry-After") or 0)
    except ValueError:  # a date: our own schedule is as good
        wait_s = 0.0
    return NotSent(words, retry_after_s=wait_s if math.isfinite(wait_s) else 0.0, gone=answer.status == 410)


def in_words(error: Exception) -> str:
    """What went wrong, for a person. Secrets are taken out by the caller."""
    match error:
        case smtplib.SMTPAuthenticationError():
            return f"the mail server refuses the password ({error.smtp_code})"
        case smtplib.SMTPResponseException():
            said = error.smtp_error if isinstance(error.smtp_error, str) else error.smtp_error.decode(errors="replace")
            return f"the mail server says {error.smtp_code} {line(said)[:200]}"
        case smtplib.SMTPRecipientsRefused():
            return "the mail server refuses every recipient"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {error.verify_message}"
        case TimeoutError():
            return line(str(error)) or "no answer in time"
        case socket.gaierror():
            return "its name is not found"
        case OSError() if error.strerror:
            return error.strerror
    return line(str(error))[:300] or type(error).__name__
