"""The settings in force as a person reads them: value, default, origin, meaning. What could be a secret is never shown. Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import PydanticUndefined

from api.wording import duration, size
from daemon.settings import PREFIX, Settings

#: Where a group begins, by its first setting; the others stand where the configuration has them, new ones too.
GROUPS: Mapping[str, str] = {
    "home": "The rig and its page",
    "redis_url": "The queue, and other rigs",
    "slots": "GPUs and hours",
    "allowed_paths": "What jobs may use",
    "min_run_s": "Sharing GPUs, heat and power",
    "lease_s": "Patience",
    "disk_floor_bytes": "Disk, sizes and start",
    "price_per_kwh": "Energy and money",
    "kernel_log": "Faults and metrics",
    "gguf_converter": "Exports and trackers",
    "notify": "Messages",
    "metrics_dcgm": "Metrics",
}
ORIGIN_WORDS: Mapping[str, str] = {
    "flag": "flag",
    "environment": "environment",
    "file": "config.toml",
    "default": "default",
    "given": "flag or environment",
}
#: Tables whose values are hours, prices and watts. Any other table may hold a token, a topic, an address with a key in it.
OPEN_TABLES = frozenset({"window", "tariff", "gpu_power_limit_w"})
SECRETIVE = re.compile(r"token|secret|passw|api_?key|credential|topic|webhook", re.IGNORECASE)
#: Addresses of our own, whose path is no secret.
OPEN_URLS = frozenset({"redis_url", "public_url"})
HIDDEN = "set, not shown"


@dataclass(frozen=True)
class Shown:
    """One setting."""

    name: str
    value: str
    #: The same for people: 15 min, 1.9 GiB.
    reading: str
    default: str
    origin: str
    origin_words: str
    meaning: str
    variable: str
    #: What config.toml says by now, when it is something else.
    pending: str = ""

    @property
    def is_default(self) -> bool:
        return self.origin == "default"


def shown(
    settings: Settings, origins: Mapping[str, str] | None, file: Settings | None
) -> list[tuple[str, list[Shown]]]:
    """Every setting, in groups. `origins`: as the daemon told them; `file`: what the configuration file says now."""
    groups: list[tuple[str, list[Shown]]] = []
    for name in type(settings).model_fields:
        if name in GROUPS or not groups:
            groups.append((GROUPS.get(name, "More"), []))
        groups[-1][1].append(_one(name, settings, origins, file))
    return groups


def text_of(name: str, value: Any) -> str:
    """A value, with whatever could open a door left out."""
    if value in (None, "", (), [], {}):
        return "none"
    if SECRETIVE.search(name):
        return HIDDEN
    if isinstance(value, Mapping):
        if name in OPEN_TABLES:
            return ", ".join(f"{key} = {_plain(item)}" for key, item in value.items())
        return ", ".join(f"{key} ({_host_of(item) or HIDDEN})" for key, item in value.items())
    if isinstance(value, (tuple, list)):
        if name not in OPEN_TABLES and any(isinstance(item, Mapping) for item in value):
            return f"{len(value)}, not shown"
        return ", ".join(text_of(name, item) if isinstance(item, str) else _plain(item) for item in value)
    if isinstance(value, str) and "://" in value:
        return _without_secrets(value, with_path=name in OPEN_URLS)
    return _plain(value)


def _one(name: str, settings: Settings, origins: Mapping[str, str] | None, file: Settings | None) -> Shown:
    field, value = type(settings).model_fields[name], getattr(settings, name)
    usual = None if field.default is PydanticUndefined else field.default
    origin = _origin(name, value, usual, settings, origins)
    text = text_of(name, value)
    pending = ""
    if file is not None and origin in ("file", "default") and (now := getattr(file, name)) != value and name != "home":
        pending = text_of(name, now)
    return Shown(
        name=name,
        value=text,
        reading=_reading(name, value),
        default="the machine's name" if name == "rig" else "" if name == "home" else text_of(name, usual),
        origin=origin,
        origin_words=ORIGIN_WORDS[origin],
        meaning=field.description or ("Where everything lies." if name == "home" else ""),
        variable=f"{PREFIX}{name.upper()}",
        pending=pending,
    )


def _origin(name: str, value: Any, usual: Any, settings: Settings, origins: Mapping[str, str] | None) -> str:
    if origins is not None:
        return origins.get(name, "default")
    own = settings.origins.get(name)
    # a daemon that tells no origins hands everything on through the environment
    return "default" if own is None and (value == usual or name in ("home", "rig")) else own or "given"


def _reading(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    if name.endswith("_bytes"):
        return size(value)
    if name.endswith("_s") and value >= 60:
        return duration(value)
    return f"{value:g} days" if name.endswith("_days") else ""


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)


def _host_of(value: Any) -> str:
    """Where a channel leads, when that is all there is to say."""
    urls = [item for item in _texts(value) if "://" in item]
    return ", ".join(dict.fromkeys(host for url in urls if (host := _host(url))))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _without_secrets(url: str, *, with_path: bool) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return HIDDEN
    who = "…@" if "@" in parts.netloc else ""
    rest = parts.path if with_path else "/…" if parts.path.strip("/") or parts.query else ""
    return f"{parts.scheme}://{who}{parts.netloc.rpartition('@')[2]}{rest}"


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
