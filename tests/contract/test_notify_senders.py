"""Each channel against a real server on loopback: what arrives, what is refused, what is never waited for."""

import base64
import email
import email.policy
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from notify_servers import Post, Web, certificate, post, silence, web
from standardwebhooks.webhooks import Webhook as PublicWebhook
from standardwebhooks.webhooks import WebhookVerificationError

from daemon.notify import addresses, senders
from daemon.notify.addresses import Forbidden, forbidden
from daemon.notify.config import Apprise, Email, Ntfy, Ping, SecretMissing, Webhook
from daemon.notify.message import Kind, Message, redacted
from daemon.notify.messenger import parts_of
from daemon.notify.outbox import Delivery
from daemon.notify.senders import NotSent, Sending, in_words, ping, send, signed

OLD, NEW = (f"whsec_{base64.b64encode(bytes([n] * 32)).decode()}" for n in (1, 2))
SECRETS = {"TOKEN": "tk_canary", "OLD": OLD, "NEW": NEW, "MAIL": "open sesame", "BAD": "whsec_short"}
MESSAGE = Message(
    key="k", kind=Kind.URGENT, title="GPU 1 is out of service: Größe ✓", text="XID 79\nsecond line", at=1_795_000_000.0,
    bare_title="GPU 1", bare_text="bare", long_text="the whole of it", priority=4, tags=("warning",), path="/gpus",
    data={"name": "run-7"},
)  # fmt: skip
DELIVERY = Delivery("msg_0123", "phone", MESSAGE)


def sending(**facts: Any) -> Sending:
    return Sending(**{"rig": "rig", "page": "https://rig.example", "now": 1_795_000_100.0, "secrets": SECRETS, **facts})


@pytest.fixture
def server() -> Iterator[Web]:
    with web() as found:
        yield found


# -- ntfy -------------------------------------------------------------------------------------------------------------------


def test_ntfy_gets_title_priority_tags_link_and_an_id_that_a_repetition_shares(server: Web) -> None:
    channel = Ntfy(kind="ntfy", url=f"{server.url}/sub/topic", token="secret:TOKEN")
    send(DELIVERY, channel, sending())
    [asked] = server.asked
    assert (asked.method, asked.path, asked.headers["authorization"]) == ("POST", "/sub/", "Bearer tk_canary")
    assert asked.json == {
        "topic": "topic", "title": MESSAGE.title, "message": "XID 79\nsecond line", "priority": 4, "tags": ["warning"],
        "sequence_id": "msg_0123", "click": "https://rig.example/gpus",
        "actions": [{"action": "view", "label": "Open", "url": "https://rig.example/gpus"}],
    }  # fmt: skip


def test_where_only_this_machine_reaches_the_page_there_is_no_link(server: Web) -> None:
    send(DELIVERY, Ntfy(kind="ntfy", url=f"{server.url}/t"), sending(page=""))
    assert not {"click", "actions"} & server.asked[0].json.keys()


def test_a_channel_without_names_gets_none(server: Web) -> None:
    send(DELIVERY, Ntfy(kind="ntfy", url=f"{server.url}/t", names=False), sending())
    assert (server.asked[0].json["title"], server.asked[0].json["message"]) == ("GPU 1", "bare")


def test_s34_a_secret_that_is_missing_is_named_and_nothing_is_sent(server: Web) -> None:
    with pytest.raises(SecretMissing, match="has no OTHER"):
        send(DELIVERY, Ntfy(kind="ntfy", url=f"{server.url}/t", token="secret:OTHER"), sending())
    assert server.asked == []


@pytest.mark.parametrize(
    ("status", "gone"), [(400, False), (401, False), (410, True), (429, False), (500, False), (302, False)]
)
def test_whatever_is_not_2xx_has_not_arrived(server: Web, status: int, gone: bool) -> None:
    server.statuses, server.headers = [status], {"Retry-After": "90", "Location": f"{server.url}/elsewhere"}
    with pytest.raises(NotSent, match=f"HTTP status {status}") as refused:
        send(DELIVERY, Ntfy(kind="ntfy", url=f"{server.url}/t"), sending())
    assert (refused.value.gone, refused.value.retry_after_s) == (gone, 90.0)
    assert len(server.asked) == 1, "s32: no redirect is followed"


# -- webhooks ---------------------------------------------------------------------------------------------------------------


def test_s33_a_webhook_is_verified_by_the_public_library_with_the_old_and_the_new_secret(server: Web) -> None:
    channel = Webhook(kind="webhook", url=f"{server.url}/hook?x=1", secrets=("secret:NEW", "secret:OLD"))
    send(DELIVERY, channel, sending(now=time.time()))
    [asked] = server.asked
    assert asked.path == "/hook?x=1"
    for secret in (OLD, NEW):
        event = PublicWebhook(secret).verify(asked.body, asked.headers)
        assert (event["type"], event["data"]["rig"], event["data"]["name"]) == ("rig.trouble", "rig", "run-7")
        assert (event["data"]["url"], event["data"]["text"]) == ("https://rig.example/gpus", "the whole of it")
    assert asked.headers["webhook-id"] == "msg_0123"
    assert event["timestamp"] == "2026-11-18T11:06:40.000Z"
    with pytest.raises(WebhookVerificationError):
        PublicWebhook(OLD).verify(asked.body + b" ", asked.headers)


def test_s33_a_replayed_webhook_is_refused_by_the_public_library() -> None:
    headers = signed("msg_1", b"{}", [OLD], now=1_000_000.0)
    with pytest.raises(WebhookVerificationError, match="too old"):
        PublicWebhook(OLD).verify(b"{}", headers)


def test_a_secret_of_a_wrong_form_is_told_without_itself(server: Web) -> None:
    with pytest.raises(NotSent, match="whsec_") as refused:
        send(DELIVERY, Webhook(kind="webhook", url=f"{server.url}/h", secrets=("secret:BAD",)), sending())
    assert "short" not in str(refused.value)
    assert server.asked == []


# -- e-mail -----------------------------------------------------------------------------------------------------------------


def mail_to(server: Post, **facts: Any) -> Email:
    return Email(**{"kind": "email", "host": "127.0.0.1", "port": server.port, "security": "none", "to": ["me@example.org"], **facts})  # fmt: skip


def read(text: str) -> EmailMessage:
    found = email.message_from_string(text, policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    return found


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    found = certificate(tmp_path)
    if found is None:
        pytest.skip("openssl is not installed: it makes the certificate of the test")
    context, path = found
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return context


def test_a_mail_has_the_whole_text_the_link_and_a_message_id_that_stays() -> None:
    with post() as server:
        for _ in range(2):
            send(
                DELIVERY,
                mail_to(server, sender="Rig <rig@example.org>", to=["a@example.org", "b@example.org"]),
                sending(),
            )
        first, second = (read(text) for text in server.mails)
    assert first["Subject"] == f"[rig] {MESSAGE.title}"
    assert (first["From"], first["To"]) == ("Rig <rig@example.org>", "a@example.org, b@example.org")
    assert first.get_content().split() == ["the", "whole", "of", "it", "https://rig.example/gpus"]
    assert first["Message-ID"] == second["Message-ID"] == "<msg_0123@rig.overnight>"
    assert (first["Auto-Submitted"], first["Importance"]) == ("auto-generated", "high")


def test_a_report_comes_with_its_page_where_one_was_kept_for_it(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (page := tmp_path / "reports" / "2026-11-24.html").write_text("<title>Größe</title>")
    report = replace(MESSAGE, kind=Kind.REPORT, at=page.stat().st_mtime, data={"night": "2026-11-24"})
    channel, here = Email(kind="email", host="mail", to=("me@example.org",)), sending(home=tmp_path)

    def attached(message: Message, channel: Email = channel) -> list[Any]:
        return list(senders.mail_of(Delivery("msg_1", "mail", message), channel, here).iter_attachments())

    [part] = attached(report)
    assert (part.get_filename(), part.get_content().strip()) == ("overnight-2026-11-24.html", "<title>Größe</title>")
    assert attached(replace(report, at=report.at + 3600)) == [], "made long before: not this report's"
    assert attached(replace(report, data={"night": "2026-11-23"})) == []
    assert attached(report, channel.model_copy(update={"attach": False})) == []
    assert attached(report, channel.model_copy(update={"names": False})) == []


@pytest.mark.parametrize("security", ["starttls", "ssl"])
def test_a_mail_goes_encrypted_and_with_its_password(trusted: Any, security: str) -> None:
    with post(trusted, security=security) as server:
        send(DELIVERY, mail_to(server, security=security, user="me@example.org", password="secret:MAIL"), sending())
        assert server.logins == [("me@example.org", "open sesame")]
        assert server.encrypted == [True]
        assert read(server.mails[0])["From"] == "me@example.org"


def test_a_password_never_goes_to_a_server_that_offers_no_encryption(trusted: Any) -> None:
    with post() as server:
        with pytest.raises(OSError, match="STARTTLS"):
            send(DELIVERY, mail_to(server, security="starttls", user="me", password="secret:MAIL"), sending())
        assert server.logins == server.mails == []


@pytest.mark.parametrize("security", ["starttls", "ssl"])
def test_a_mail_server_with_a_strange_certificate_gets_nothing(tmp_path: Path, security: str) -> None:
    found = certificate(tmp_path)
    if found is None:
        pytest.skip("openssl is not installed: it makes the certificate of the test")
    with post(found[0], security=security) as server:
        with pytest.raises(OSError) as refused:
            send(DELIVERY, mail_to(server, security=security, user="me", password="secret:MAIL"), sending())
        assert "not trusted" in in_words(refused.value)
        assert server.logins == server.mails == []


def test_s34_a_refused_password_is_told_without_the_password() -> None:
    with post() as server:
        server.password = "another"
        with pytest.raises(OSError) as refused:
            send(DELIVERY, mail_to(server, user="me", password="secret:MAIL"), sending())
    assert in_words(refused.value) == "the mail server refuses the password (535)"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.text(max_size=300), st.text(max_size=300))
def test_s18_no_title_can_make_a_header_or_a_second_recipient(title: str, text: str) -> None:
    hostile = replace(MESSAGE, title=f"{title}\r\nBcc: evil@example.org\n\n{text}", long_text=text)
    channel = Email(kind="email", host="mail.example", to=("me@example.org",))
    mail = senders.mail_of(Delivery("msg_1", "mail", hostile), channel, sending())
    again = email.message_from_bytes(mail.as_bytes(), policy=email.policy.default)
    assert again["Bcc"] is None
    assert again["To"] == "me@example.org"


# -- everything else --------------------------------------------------------------------------------------------------------


def test_apprise_sends_to_whatever_it_knows_and_asks_nobody_for_an_icon(server: Web) -> None:
    pytest.importorskip("apprise")
    url = server.url.replace("http://", "json://") + "/notify"
    send(DELIVERY, Apprise(kind="apprise", url=url), sending())
    [asked] = server.asked
    assert asked.json["title"] == MESSAGE.title
    assert asked.json["message"] == "XID 79\nsecond line\nhttps://rig.example/gpus"
    assert asked.json["type"] == "warning"


def test_apprise_that_cannot_send_says_so(server: Web) -> None:
    pytest.importorskip("apprise")
    server.statuses = [500]
    with pytest.raises(NotSent, match="could not send"):
        send(DELIVERY, Apprise(kind="apprise", url=server.url.replace("http://", "json://")), sending())
    with pytest.raises(NotSent, match="does not know such an address"):
        send(DELIVERY, Apprise(kind="apprise", url="pigeon://x"), sending())


@pytest.mark.parametrize(
    ("path", "more", "asked"),
    [
        ("/uuid", {}, [("GET", "/uuid"), ("POST", "/uuid/fail")]),
        ("/uuid", {"fail_url": "{}/down"}, [("GET", "/uuid"), ("POST", "/down")]),
        ("/api/push/k?status=up&msg=OK", {}, [("GET", "/api/push/k?status=up&msg=OK"), ("GET", "/api/push/k?status=down&msg=disk+full")]),
    ],
)  # fmt: skip
def test_a_dead_man_switch_is_told_that_the_rig_is_well_or_not(server: Web, path: str, more: dict[str, str], asked: Any) -> None:  # fmt: skip
    channel = Ping(kind="ping", url=server.url + path, **{k: v.format(server.url) for k, v in more.items()})
    ping(channel, sending(), well=True)
    ping(channel, sending(), well=False, because="disk full")
    assert [(one.method, one.path) for one in server.asked] == asked
    assert server.asked[1].body in (b"disk full", b"")


# -- where to ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "0.0.0.0", "::",
        "169.254.169.254", "fe80::1%eth0", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00:ec2::254", "100.100.100.200",
        "224.0.0.1", "255.255.255.255",
    ],
)  # fmt: skip
def test_s32_a_name_must_not_lead_here_or_to_metadata(address: str) -> None:
    assert forbidden(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "192.168.1.5", "10.0.0.7", "100.101.102.103", "fd12::1", "2606:2800::1"])  # fmt: skip
def test_s32_the_owners_own_network_and_the_world_are_allowed(address: str) -> None:
    assert forbidden(address) is None


@pytest.mark.parametrize("written", ["127.1", "2130706433", "0x7f000001", "017700000001"])
def test_s32_a_loopback_that_is_written_in_a_strange_way_is_refused(server: Web, written: str) -> None:
    port = server.url.rpartition(":")[2]
    with pytest.raises(OSError) as refused:
        send(DELIVERY, Ntfy(kind="ntfy", url=f"http://{written}:{port}/t"), sending())
    assert isinstance(refused.value, Forbidden | socket.gaierror)
    assert server.asked == []


def test_s32_a_name_that_flips_to_the_loopback_is_refused_and_is_resolved_only_once(server: Web, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    port, real, resolved = int(server.url.rpartition(":")[2]), socket.getaddrinfo, []

    def flipping(host: str, *rest: Any, **more: Any) -> Any:
        resolved.append(host)
        return real("127.0.0.1" if host == "hooks.example" else host, *rest, **more)

    monkeypatch.setattr(addresses.socket, "getaddrinfo", flipping)
    with pytest.raises(Forbidden, match="this machine"):
        send(DELIVERY, Ntfy(kind="ntfy", url=f"http://hooks.example:{port}/t"), sending())
    assert (resolved, server.asked) == (["hooks.example"], [])


# -- who never answers ------------------------------------------------------------------------------------------------------


def test_a_server_that_drips_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes within the socket's own timeout: only a deadline for the whole ends it."""
    monkeypatch.setattr(senders, "HTTP_TIMEOUT_S", 0.4)
    ended = threading.Event()
    with silence() as (port, held):

        def drip() -> None:
            while not ended.wait(0.05):
                for connection in list(held):
                    try:
                        connection.sendall(b"H")
                    except OSError:
                        ended.set()

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        with pytest.raises(OSError) as refused:
            send(DELIVERY, Ntfy(kind="ntfy", url=f"http://127.0.0.1:{port}/t"), sending())
        ended.set()
        thread.join()
    assert "time" in in_words(refused.value)


@pytest.mark.parametrize("security", ["none", "starttls", "ssl"])
def test_a_mail_server_that_never_says_a_word_is_left_in_time(monkeypatch: pytest.MonkeyPatch, security: str) -> None:
    monkeypatch.setattr(senders, "HTTP_TIMEOUT_S", 0.3)
    with silence() as (port, _):
        channel = Email(kind="email", host="127.0.0.1", port=port, security=security, to=("me@example.org",))
        with pytest.raises(OSError) as refused:
            send(DELIVERY, channel, sending())
    assert "time" in in_words(refused.value)


def test_https_is_checked_against_the_name_that_was_configured(trusted: Any) -> None:
    with web(trusted) as server:
        send(DELIVERY, Ntfy(kind="ntfy", url=f"{server.url}/t"), sending())
        assert len(server.asked) == 1
        with pytest.raises(OSError) as refused:
            send(DELIVERY, Ntfy(kind="ntfy", url=f"{server.url.replace('127.0.0.1', 'localhost')}/t"), sending())
        assert "not trusted" in in_words(refused.value)
        assert len(server.asked) == 1


def test_s34_no_error_of_a_channel_tells_its_address(tmp_path: Path) -> None:
    channel = Apprise(kind="apprise", url="tgram://123:CANARY/chat?x=HIDDEN")
    told = redacted(
        json.dumps({"e": "POST tgram://123:CANARY/chat?x=HIDDEN", "p": "/chat?x=HIDDEN"}), parts_of(channel)
    )
    assert "CANARY" not in told
    assert "HIDDEN" not in told
