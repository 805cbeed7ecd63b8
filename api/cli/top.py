"""`overnight top`: GPUs and jobs, live, over HTTP. A thread of its own asks the rig, so that a slow link never keeps a key waiting."""

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from api.cli import output
from api.cli.session import Session, unreachable_words, with_rig
from api.client import ApiProblem, RigUnreachable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

Json = dict[str, Any]

QUIT = frozenset("qQ\x03\x1b")
#: The screen is drawn at least so often: it shows how old everything is.
DRAW_EVERY_S = 1.0
#: An answer older than so many intervals, and than so long, is marked.
OLD_INTERVALS, OLD_S = 3, 5.0
BAR_CELLS = 12
WARM_C, HOT_C = 75, 85
QUEUED_SHOWN, RUNNING_SHOWN = 10, 50


@dataclass(frozen=True)
class Seen:
    """What the rig answered last."""

    at: float
    gpus: Sequence[Json]
    running: Sequence[Json]
    queued: Sequence[Json]
    rig: Json
    took_s: float = 0.0


@dataclass
class Watcher:
    """Asks again and again, in a thread; `latest` and `problem` are what it knows."""

    ask: Callable[[], Seen]
    interval_s: float
    latest: Seen | None = None
    problem: str = ""
    refused: ApiProblem | None = None
    told: threading.Event = field(default_factory=threading.Event)
    _end: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """It never keeps the program from ending."""
        threading.Thread(target=self._run, name="watcher", daemon=True).start()

    def stop(self) -> None:
        self._end.set()

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                self.latest, self.problem = self.ask(), ""
            except RigUnreachable as error:
                self.problem = unreachable_words(error)
            except ApiProblem as problem:
                if problem.status < 500:
                    self.refused = problem
                self.problem = str(problem)
            self.told.set()
            if self.refused:
                return
            self._end.wait(self.interval_s)


@click.command("top")
@click.option(
    "--interval", type=click.FloatRange(0.2, 60), default=2.0, show_default=True, help="Seconds between looks."
)
@click.option("--once", is_flag=True, help="One look, as text.")
@with_rig
def top(session: Session, interval: float, once: bool) -> None:
    """GPUs and jobs, live. q or Ctrl-C ends it; the rig goes on."""
    if session.as_json:
        output.emit({**vars(look(session)), "at": time.time()})
    elif once or not (output.is_terminal() and sys.stdin.isatty()):
        console = output.console()
        console.print(screen(look(session), age_s=0.0, height=10_000))
    else:
        watch(session, interval)


def look(session: Session) -> Seen:
    """Everything that is shown, in four short calls."""
    began = time.monotonic()
    client = session.client
    gpus = client.gpus()
    running = client.jobs(state="running", limit=RUNNING_SHOWN)["jobs"]
    queued = client.jobs(state="queued", limit=QUEUED_SHOWN)["jobs"]
    rig = client.rig()
    return Seen(began, gpus, running, queued, rig, time.monotonic() - began)


def watch(session: Session, interval_s: float) -> None:
    """Draw until somebody wants no more. Raises ApiProblem when the rig refuses us."""
    from rich.live import Live

    watcher = Watcher(lambda: look(session), interval_s)
    watcher.start()
    with keys() as pressed, Live(console=output.console(), screen=True, auto_refresh=False) as live:
        try:
            while not pressed(DRAW_EVERY_S if watcher.latest else 0.1) and watcher.refused is None:
                live.update(_shown(watcher, interval_s, live.console.size.height), refresh=True)
        except KeyboardInterrupt:
            pass
        finally:
            watcher.stop()
    if watcher.refused is not None:
        raise watcher.refused


@contextlib.contextmanager
def keys() -> Iterator[Callable[[float], bool]]:
    """A function that waits for a key and says whether it was one that ends the program. Keys are not echoed."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)

    def pressed(within_s: float) -> bool:
        if not select.select([descriptor], [], [], within_s)[0]:
            return False
        typed = os.read(descriptor, 64).decode(errors="replace")
        # an arrow key begins with the same character as the key Esc
        return not typed or (typed == "\x1b" or bool(QUIT & set(typed) - {"\x1b"}))

    try:
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


# -- how it looks -------------------------------------------------------------------------------------------------------


def screen(
    seen: Seen | None, *, age_s: float, height: int, problem: str = "", old_s: float = OLD_S
) -> "RenderableType":
    """The whole picture, cut to so many lines."""
    from rich.console import Group
    from rich.text import Text

    if seen is None:
        return Text(output.clean(problem) if problem else "Asking the rig…")
    foot = Text(f"q ends  ·  {age_s:.0f} s ago  ·  {seen.took_s * 1000:.0f} ms for a look", style="dim")
    if problem:
        foot = Text(f"{output.clean_line(problem)} Shown: {age_s:.0f} s ago.", style="red")
    elif age_s > old_s:
        foot.stylize("yellow")
    parts: list[RenderableType] = [head(seen), gpu_table(seen.gpus), Text(""), job_table(seen, height - len(seen.gpus) - 7)]  # fmt: skip
    return Group(*parts, foot)


def head(seen: Seen) -> "Text":
    """The rig in one line."""
    from rich.text import Text

    rig, counts = seen.rig, seen.rig.get("jobs") or {}
    watts = [(gpu.get("sample") or {}).get("power_w") for gpu in seen.gpus]
    window = rig.get("window") or {}
    parts = [
        f"{counts.get('running', 0)} running",
        f"{counts.get('queued', 0)} waiting",
        f"{counts.get('failed', 0)} failed",
        f"{sum(w for w in watts if w):.0f} W" if any(watts) else "",
        "paused" if rig.get("paused") else "",
        "" if window.get("open", True) else f"window opens {output.clock(window.get('opens_at'))}",
    ]
    text = Text(output.clean_line(rig.get("name") or "rig"), style="bold")
    text.append("  " + "  ·  ".join(filter(None, parts)), style="not bold")
    if not ((rig.get("health") or {}).get("daemon") or {}).get("alive", True):
        text.append("  the daemon is silent", style="bold red")
    return text


def gpu_table(gpus: Sequence[Mapping[str, Any]]) -> "Table":
    """A line for each slot."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    for name in ("GPU", "NAME", "BUSY", "MEMORY", "TEMP", "POWER", "STATE", "JOB", "SLOWED BY"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    several = len({gpu.get("rig") for gpu in gpus}) > 1
    for gpu in gpus:
        sample = gpu.get("sample") or {}
        where = f"{gpu.get('rig')} {gpu['index']}" if several else str(gpu["index"])
        used, total = sample.get("memory_used_bytes"), sample.get("memory_total_bytes") or gpu.get("memory_bytes")
        table.add_row(
            Text(output.clean_line(where)),
            Text(output.clean_line(gpu["name"]).removeprefix("NVIDIA ").removeprefix("GeForce ")),
            _bar(sample.get("utilization_ratio"), "green"),
            _bar(used / total if used is not None and total else None, "blue", _gib(used, total)),
            _degrees(sample.get("temperature_c")),
            Text(_watts(sample)),
            _state(gpu),
            Text(output.clean_line(gpu.get("job") or "")),
            Text(output.clean_line(" ".join(sample.get("throttle_reasons") or ()).replace("_", "-")), style="yellow"),
        )
    return table


def job_table(seen: Seen, room: int) -> "Table":
    """What runs, then what waits."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("JOB", "STATE", "NAME", "PROGRESS", "TOOK", "WHAT"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    jobs = [*seen.running, *seen.queued]
    shown = jobs if len(jobs) <= max(3, room) else jobs[: max(3, room) - 1]
    for job in shown:
        fraction = (job.get("progress") or {}).get("fraction") if job["state"] == "running" else None
        table.add_row(
            Text(str(job["id"])),
            Text(
                output.clean_line(job["state"]), style=output.COLOURS.get(job["state"], "") if output.colours() else ""
            ),
            Text(output.clean_line(job["name"])),
            _bar(fraction, "cyan") if fraction is not None else Text(""),
            Text(output.took(job)),
            Text(output.clean_line(output.what(job))),
        )
    if left := len(jobs) - len(shown):
        table.add_row("", "", Text(f"and {left} more", style="dim"), "", "", "")
    if not jobs:
        table.add_row("", "", Text("no job runs or waits", style="dim"), "", "", "")
    return table


def _shown(watcher: Watcher, interval_s: float, height: int) -> "RenderableType":
    seen = watcher.latest
    age_s = time.monotonic() - seen.at if seen else 0.0
    old_s = max(OLD_S, OLD_INTERVALS * interval_s)
    return screen(seen, age_s=age_s, height=height, problem=watcher.problem, old_s=old_s)


def _bar(ratio: float | None, colour: str, words: str = "") -> "Text":
    from rich.text import Text

    if ratio is None:
        return Text("-", style="dim")
    filled = round(max(0.0, min(1.0, ratio)) * BAR_CELLS)
    text = Text("█" * filled, style=colour)
    text.append("░" * (BAR_CELLS - filled), style="dim")
    text.append(f" {words or f'{ratio * 100:3.0f} %'}", style="default")
    return text


def _gib(used: float | None, total: float | None) -> str:
    return f"{used / 2**30:4.1f}/{total / 2**30:.0f} GiB" if used is not None and total else ""


def _degrees(value: float | None) -> "Text":
    from rich.text import Text

    if value is None:
        return Text("-", style="dim")
    return Text(f"{value:.0f} °C", style="red" if value >= HOT_C else "yellow" if value >= WARM_C else "")


def _watts(sample: Mapping[str, Any]) -> str:
    watts, limit = sample.get("power_w"), sample.get("power_limit_w")
    if watts is None:
        return "-"
    return f"{watts:.0f}/{limit:.0f} W" if limit else f"{watts:.0f} W"


def _state(gpu: Mapping[str, Any]) -> "Text":
    from rich.text import Text

    state = str(gpu.get("state") or "")
    colour = {"busy": "cyan", "lost": "bold red", "quarantined": "bold red", "paused": "yellow"}.get(state, "")
    return Text(output.clean_line(state), style=colour)
