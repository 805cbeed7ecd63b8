"""Which rig to speak to, and with which token. A token goes only to the rig that it was given for.

Precedence: flag, OVERNIGHT_URL and OVERNIGHT_TOKEN, ~/.config/overnight/config.toml (0600), the rig on this machine, default.
"""

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from api.client import LOOPBACK
from jobs.home import default_home

DEFAULT_PORT = 2200
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
KEYS = ("url", "token")


class ConfigError(Exception):
    """The configuration cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Value:
    """A setting and where it comes from."""

    text: str
    origin: str


@dataclass(frozen=True)
class Access:
    """How to reach a rig."""

    url: Value
    token: Value
    home: Path


def resolve(environment: Mapping[str, str], *, server: str | None = None, token: str | None = None) -> Access:
    """The rig to speak to. Raises ConfigError."""
    known = _Known.of(environment)
    found = next(known.urls(server))
    url = Value(check_url(found.text, found.origin), found.origin)
    secret = next(known.tokens(token, url.text), Value("", "none found"))
    return Access(url, Value(check_token(secret.text, secret.origin), secret.origin), known.home)


@dataclass(frozen=True)
class _Known:
    """Every place that a setting can come from."""

    environment: Mapping[str, str]
    file: Path
    settings: Mapping[str, str]
    home: Path
    rig_url: str | None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        home, file = home_of(environment), config_path(environment)
        return cls(environment, file, _read(file), home, url_of_rig(home))

    def urls(self, flag: str | None) -> Iterator[Value]:
        """Addresses, the one that counts first."""
        if flag:
            yield Value(flag, "--server")
        if url := self.environment.get("OVERNIGHT_URL"):
            yield Value(url, "OVERNIGHT_URL")
        if url := self.settings.get("url"):
            yield Value(url, str(self.file))
        if self.rig_url:
            yield Value(self.rig_url, str(self.home / "api.json"))
        yield Value(DEFAULT_URL, "default")

    def tokens(self, flag: str | None, url: str) -> Iterator[Value]:
        """Tokens for the rig at this address, the one that counts first. Those in files belong to the address beside them."""
        if flag:
            yield Value(flag, "--token")
        if token := self.environment.get("OVERNIGHT_TOKEN"):
            yield Value(token, "OVERNIGHT_TOKEN")
        local = self.rig_url or DEFAULT_URL
        if (token := self.settings.get("token")) and same_rig(url, self.settings.get("url") or local):
            yield Value(token, str(self.file))
        if same_rig(url, local) and (token := token_of_rig(self.home)):
            yield Value(token, str(self.home / "token"))


def home_of(environment: Mapping[str, str]) -> Path:
    """The rig's folder on this machine."""
    return Path(environment.get("OVERNIGHT_HOME") or default_home()).expanduser().absolute()


def config_path(environment: Mapping[str, str]) -> Path:
    """The laptop's own configuration file."""
    return Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "overnight" / "config.toml"


def url_of_rig(home: Path) -> str | None:
    """Where the rig on this machine listens, as its API wrote it down."""
    try:
        record = json.loads((home / "api.json").read_text())
        return str(record["url"]).rstrip("/")
    except (OSError, ValueError, KeyError, TypeError):
        return None


def token_of_rig(home: Path) -> str | None:
    """The token that the rig made at its first start."""
    try:
        return (home / "token").read_text().strip()
    except OSError:
        return None


def check_url(text: str, origin: str) -> str:
    """`rig:2200` and full URLs; raises ConfigError for anything else."""
    url = text.strip().rstrip("/").removesuffix("/api/v1")
    url = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url or parts.query or parts.fragment:
        raise ConfigError(f"{text!r} ({origin}) is not the address of a rig, such as http://rig:{DEFAULT_PORT}")
    return url


def check_token(text: str, origin: str) -> str:
    """A token fits into one HTTP header."""
    token = text.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"The token ({origin}) has characters that no token has. Copy it again.")
    return token


def same_rig(one: str, other: str | None) -> bool:
    """Whether two addresses lead to one listener."""
    return other is not None and _listener(one) == _listener(other)


def _listener(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, "loopback" if host in LOOPBACK else host, port


def _read(file: Path) -> dict[str, str]:
    try:
        settings: dict[str, Any] = tomllib.loads(file.read_text())
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    if unknown := sorted(set(settings) - set(KEYS)):
        raise ConfigError(f"{file}: {unknown[0]!r} is not a key of this file; it may have: {', '.join(KEYS)}")
    if not all(isinstance(value, str) for value in settings.values()):
        raise ConfigError(f"{file}: url and token are texts in quotes")
    if "token" in settings and mode & 0o077 and os.name == "posix":
        raise ConfigError(f"{file} holds a token and others can read it. Run: chmod 600 {file}")
    return settings
