"""The channels of config.toml: where messages go. Targets come from there only, and what is secret from secrets.toml."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PositiveInt,
    SecretStr,
)

SECRET = re.compile(r"secret:([A-Za-z_][A-Za-z0-9_]{0,127})")
NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
#: Whoever knows a topic's name there can read along, unless a token guards it.
PUBLIC_NTFY = ("ntfy.sh", "www.ntfy.sh")

#: The API keeps the night's report as a file, and looks twice a minute whether it is time.
REPORT_FILE_S = 90.0

Sends = Literal["report", "urgent", "job"]


class SecretMissing(Exception):
    """A channel names a secret that secrets.toml does not have; the message says which."""


def masked(url: str) -> str:
    """An address as it may be shown: who is spoken to, and nothing that opens anything."""
    if SECRET.fullmatch(url):
        return url
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2] if parts.scheme in ("http", "https") else ""
    return f"{parts.scheme}://{host}/…" if parts.scheme else "…"


def _is_http(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    if SECRET.fullmatch(text):
        return url
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.fragment
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError('is an address like "https://host/path", or "secret:NAME" for one in secrets.toml')
    return url


def _is_secret(text: str) -> str:
    if not SECRET.fullmatch(text):
        # never with the text itself: it may be the secret
        raise ValueError('is written as "secret:NAME"; the value itself stands in secrets.toml')
    return text


def _shown(url: SecretStr) -> str:
    return masked(url.get_secret_value())


#: May hold a secret (a topic, a key in the path): shown with its host only.
Url = Annotated[SecretStr, AfterValidator(_is_http), PlainSerializer(_shown, when_used="json")]
#: Of any scheme, for Apprise.
AnyUrl = Annotated[SecretStr, PlainSerializer(_shown, when_used="json")]
Secret = Annotated[str, AfterValidator(_is_secret)]


class Channel(BaseModel):
    """What every channel has."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    sends: tuple[Sends, ...] = Field(("report", "urgent", "job"), description="What goes there.")
    quiet: bool = Field(True, description="Whether it keeps the quiet hours.")
    names: bool = Field(True, description="Whether names of jobs and words of their errors may go there.")

    @property
    def pushes(self) -> bool:
        """Whether a person is disturbed: then messages are put together, and there is a pause between them."""
        return True

    @property
    def short(self) -> bool:
        """Whether the text must be short."""
        return True

    @property
    def report_after_s(self) -> float:
        """How long a report waits for the file that goes with it."""
        return 0.0

    @property
    def tells_names(self) -> bool:
        return self.names

    @property
    def target(self) -> str:
        """Where to, as it may be shown."""
        return ""


class Ntfy(Channel):
    """A topic of an ntfy server."""

    kind: Literal["ntfy"]
    url: Url
    token: Secret | None = None

    @property
    def tells_names(self) -> bool:
        public = (urlsplit(self.url.get_secret_value()).hostname or "") in PUBLIC_NTFY
        return self.names and ("names" in self.model_fields_set or self.token is not None or not public)

    @property
    def target(self) -> str:
        return _shown(self.url)


class Email(Channel):
    """A mailbox, through a mail server of the owner's."""

    kind: Literal["email"]
    quiet: bool = False
    host: str = Field(min_length=1, max_length=253)
    port: int | None = Field(None, ge=1, le=65535)
    security: Literal["starttls", "ssl", "none"] = "starttls"
    user: str = ""
    password: Secret | None = None
    sender: str = Field("", max_length=320)
    to: tuple[str, ...] = Field(min_length=1, max_length=16)
    attach: bool = Field(True, description="The report comes with its page as one HTML file.")

    @property
    def report_after_s(self) -> float:
        return REPORT_FILE_S if self.attach else 0.0

    @property
    def short(self) -> bool:
        return False

    @property
    def target(self) -> str:
        return f"{', '.join(self.to)} by {self.host}"


class Webhook(Channel):
    """A program that takes signed events (Standard Webhooks 1.0.0). Several secrets while one replaces another."""

    kind: Literal["webhook"]
    quiet: bool = False
    url: Url
    secrets: tuple[Secret, ...] = Field(min_length=1, max_length=8)

    @property
    def pushes(self) -> bool:
        return False

    @property
    def short(self) -> bool:
        return False

    @property
    def target(self) -> str:
        return _shown(self.url)


class Apprise(Channel):
    """Everything else: one of Apprise's addresses. Needs overnight[notify]."""

    kind: Literal["apprise"]
    url: AnyUrl

    @property
    def target(self) -> str:
        return _shown(self.url)


class Ping(Channel):
    """A dead-man switch: it is told that the rig is well, and alarms its owner when nobody says so any more."""

    kind: Literal["ping"]
    sends: tuple[()] = ()
    quiet: bool = False
    url: Url
    fail_url: Url | None = Field(None, description="Told instead when the rig is not well; url + /fail when unset.")
    every_s: PositiveInt = Field(300, ge=10, description="How often.")

    @property
    def pushes(self) -> bool:
        return False

    @property
    def target(self) -> str:
        return _shown(self.url)


AnyChannel = Annotated[Ntfy | Email | Webhook | Apprise | Ping, Field(discriminator="kind")]
Channels = dict[Annotated[str, Field(pattern=f"^{NAME.pattern}$")], AnyChannel]


def secret_names(channel: Channel) -> tuple[str, ...]:
    """The names in secrets.toml that a channel uses."""
    found: list[str] = []
    for value in dict(channel).values():
        for one in value if isinstance(value, tuple) else (value,):
            text = one.get_secret_value() if isinstance(one, SecretStr) else one
            if isinstance(text, str) and (match := SECRET.fullmatch(text)):
                found.append(match[1])
    return tuple(found)


def opened(text: str | SecretStr, secrets: Mapping[str, str]) -> str:
    """The value itself: of `secret:NAME` what secrets.toml says. Raises SecretMissing."""
    plain = text.get_secret_value() if isinstance(text, SecretStr) else text
    match = SECRET.fullmatch(plain)
    if match is None:
        return plain
    if match[1] not in secrets:
        raise SecretMissing(f"secrets.toml has no {match[1]}")
    return secrets[match[1]]


def plain(channels: Mapping[str, Any]) -> dict[str, Any]:
    """Channels as config.toml has them, unmasked: for the rig's own processes only."""

    def bare(value: Any) -> Any:
        if isinstance(value, SecretStr):
            return value.get_secret_value()
        if isinstance(value, Mapping):
            return {key: bare(item) for key, item in value.items()}
        return [bare(item) for item in value] if isinstance(value, tuple | list) else value

    return {
        name: bare(c.model_dump(exclude_unset=True) if isinstance(c, BaseModel) else c) for name, c in channels.items()
    }


__all__ = ["AnyChannel", "Apprise", "Channel", "Channels", "Email", "Ntfy", "Ping", "SecretMissing", "Webhook", "masked", "opened", "plain", "secret_names"]  # fmt: skip
