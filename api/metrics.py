"""What Prometheus is told: the queue, the slots, the GPUs, energy, faults. Names are `overnight_*`, units are base units.

Everything comes from records and from the sampler's last report: a scrape never asks the driver. A job's id stands on
`overnight_job_*` only, and only while it runs, so that the number of series stays small.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from daemon.plan import Facts
from daemon.samples import SlotNow
from daemon.telemetry import Live
from jobs.model import State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
GPU = ("rig", "gpu", "uuid", "name")


@dataclass(frozen=True)
class Scene:
    """One look at everything that is told."""

    facts: Facts
    counts: Mapping[str, int]
    live: Live
    beat: Mapping[str, Any] | None = None
    #: For each slot and XID: how often, and when last.
    xids: Sequence[tuple[str, int, int, float]] = ()
    quarantined: Mapping[str, Any] = field(default_factory=dict)
    disk_free_bytes: int | None = None
    disk_floor_bytes: int = 0
    version: str = ""
    dcgm: bool = False
    host: str = ""


def render(scene: Scene) -> bytes:
    """The text format."""
    registry = CollectorRegistry()
    registry.register(_Scrape(scene))
    return generate_latest(registry)


class _Scrape(Collector):
    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def collect(self) -> Iterator[Metric]:
        scene = self._scene
        for part in (_rig, _queue, _jobs, _slots, _gpus, _throttling, _xids, _telemetry):
            yield from part(scene)
        if scene.dcgm:
            yield from _dcgm(scene)


def _rig(scene: Scene) -> Iterator[Metric]:
    facts, rig = scene.facts, scene.facts.rig
    info = GaugeMetricFamily("overnight_build_info", "The version of Overnight; always 1.", labels=("rig", "version"))
    info.add_metric((rig, scene.version), 1)
    yield info
    for name, text, value in (
        ("daemon_up", "Whether the daemon has spoken within its time.", scene.beat is not None),
        ("paused", "Whether the whole rig is paused.", facts.paused),
        ("window_open", "Whether it is within the hours in which jobs run.", facts.window_open),
        ("held", "Whether something holds the whole queue: a full disk, a driver that must be reloaded.", bool(facts.hold)),
        ("disk_floor_bytes", "Below this much free space no job starts.", scene.disk_floor_bytes),
        ("disk_free_bytes", "Free space in the rig's home.", scene.disk_free_bytes),
        ("daemon_last_beat_timestamp_seconds", "When the daemon spoke last.", scene.beat["at"] if scene.beat else None),
    ):  # fmt: skip
        yield _one(f"overnight_{name}", text, ("rig",), (rig,), value)
    up = GaugeMetricFamily("overnight_process_up", "Whether a process of the rig lives.", labels=("rig", "process"))
    for name, state in (scene.beat or {}).get("processes", {}).items():
        up.add_metric((rig, name), bool(state["alive"]))
    yield up


def _queue(scene: Scene) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("overnight_jobs", "Jobs of this queue by state.", labels=("state",))
    for state, count in scene.counts.items():
        jobs.add_metric((state,), count)
    yield jobs
    facts = scene.facts
    for name, text, value in (
        ("startable", "Waiting jobs that lack nothing but a free slot.", len(facts.startable)),
        ("oldest_wait_seconds", "How long the oldest waiting job has waited.", _oldest_wait_s(facts)),
    ):
        yield _one(f"overnight_queue_{name}", text, (), (), value)


def _oldest_wait_s(facts: Facts) -> float:
    return max((facts.now - job.created_at for job in facts.waiting), default=0.0)


def _jobs(scene: Scene) -> Iterator[Metric]:
    labels = ("rig", "job", "name", "kind")
    families = [
        GaugeMetricFamily(f"overnight_job_{name}", text, labels=labels)
        for name, text in (
            ("running_seconds", "How long the running attempt has run."),
            ("progress_ratio", "How far the running attempt is."),
            ("eta_seconds", "How long it will still take, as it says itself."),
            ("attempt", "Which attempt this is."),
        )
    ]
    for job in scene.facts.here:
        if job.state is not State.RUNNING:
            continue
        progress = job.progress
        values = (
            scene.facts.now - job.attempts[-1].started_at,
            progress.fraction if progress else None,
            progress.eta_s if progress else None,
            job.attempt,
        )
        for family, value in zip(families, values, strict=True):
            if value is not None:
                family.add_metric((scene.facts.rig, job.id, job.name, job.kind), value)
    yield from families


def _slots(scene: Scene) -> Iterator[Metric]:
    facts = scene.facts
    for name, text, value in (
        ("busy", "Whether a job has the slot.", lambda slot: slot.job is not None),
        ("paused", "Whether its owner keeps jobs off it.", lambda slot: slot.paused),
        ("ready", "Whether its worker listens.", lambda slot: slot.ready),
        ("usable", "Whether it takes a job at all.", lambda slot: slot.usable),
    ):
        family = GaugeMetricFamily(f"overnight_slot_{name}", text, labels=("rig", "gpu", "slot"))
        for slot in facts.slots:
            family.add_metric((facts.rig, str(slot.slot.index), slot.slot.id), value(slot))
        yield family


#: Name, what it is, and where it stands in the sampler's report.
GAUGES: tuple[tuple[str, str, Callable[[SlotNow], float | None]], ...] = (
    ("utilization_ratio", "Share of the time in which a kernel ran.", lambda now: now.utilization_ratio),
    ("memory_utilization_ratio", "Share of the time in which memory was moved.", lambda now: now.memory_utilization_ratio),
    ("memory_used_bytes", "Memory in use, without the driver's reserve.", lambda now: now.memory_used_bytes),
    ("memory_total_bytes", "Memory of the GPU.", lambda now: now.memory_total_bytes),
    ("own_memory_bytes", "Memory that our own processes hold, as the driver lists them.", lambda now: now.own_memory_bytes),
    ("foreign_memory_bytes", "Memory that other people's processes hold; a desktop's is left out.", lambda now: now.foreign_memory_bytes),
    ("foreign_utilization_ratio", "Their share of the multiprocessors while we work beside them.", lambda now: now.foreign_utilization_ratio),
    ("temperature_celsius", "Temperature of the core.", lambda now: now.temperature_c),
    ("memory_temperature_celsius", "Temperature of the memory, where it is told.", lambda now: now.memory_temperature_c),
    ("throttle_temperature_celsius", "Where it slows down by itself.", lambda now: now.throttle_temperature_c),
    ("power_watts", "Power of the board, averaged by the driver.", lambda now: now.power_w),
    ("power_limit_watts", "Power limit in force.", lambda now: now.power_limit_w),
    ("sm_clock_hertz", "Clock of the multiprocessors.", lambda now: now.sm_clock_hz),
    ("memory_clock_hertz", "Clock of the memory.", lambda now: now.memory_clock_hz),
    ("fan_ratio", "Intended speed of the fan.", lambda now: now.fan_ratio),
    ("encoder_ratio", "Use of the video encoder: somebody at the desk.", lambda now: now.encoder_ratio),
    ("pcie_link_generation", "Generation of the link now; it idles low.", lambda now: now.pcie_generation),
    ("pcie_link_width", "Lanes of the link now.", lambda now: now.pcie_width),
    ("recovery_action", "What the driver asks for: 0 nothing, 1 a reset, 2 a reboot.", lambda now: now.recovery_action),
    ("processes", "Processes on the GPU, of everybody.", lambda now: len(now.processes)),
    ("up", "Whether the GPU answers.", lambda now: now.state in ("ok", "suspect")),
)  # fmt: skip
COUNTERS: tuple[tuple[str, str, Callable[[SlotNow], float | None]], ...] = (
    ("energy_joules", "Energy of the board since the driver was loaded.", lambda now: now.energy_j),
    ("pcie_replays", "Packets sent again on the link: a poor riser cable.", lambda now: now.pcie_replays),
    ("ecc_uncorrected_errors", "Memory errors that could not be corrected.", lambda now: now.ecc_uncorrected),
)


def _gpus(scene: Scene) -> Iterator[Metric]:
    for name, text, value in GAUGES:
        yield _each(GaugeMetricFamily(f"overnight_gpu_{name}", text, labels=GPU), scene, value)
    for name, text, value in COUNTERS:
        yield _each(CounterMetricFamily(f"overnight_gpu_{name}", text, labels=GPU), scene, value)
    held = GaugeMetricFamily(
        "overnight_gpu_quarantined", "Whether it was taken out of service for a fault.", labels=GPU
    )
    for slot, now in scene.live.slots.items():
        held.add_metric(_labels(scene, slot, now), slot in scene.quarantined)
    yield held


def _throttling(scene: Scene) -> Iterator[Metric]:
    family = CounterMetricFamily(
        "overnight_gpu_throttle_seconds", "Time slowed down since the driver was loaded.", labels=(*GPU, "reason")
    )
    for slot, now in scene.live.slots.items():
        for reason, seconds in now.throttled_s.items():
            family.add_metric((*_labels(scene, slot, now), reason), seconds)
    yield family


def _xids(scene: Scene) -> Iterator[Metric]:
    total = CounterMetricFamily("overnight_gpu_xid_errors", "XIDs that the driver reported.", labels=(*GPU, "xid"))
    last = GaugeMetricFamily(
        "overnight_gpu_xid_last_timestamp_seconds", "When the XID was seen last: alert on this.", labels=(*GPU, "xid")
    )
    for slot, code, count, at in scene.xids:
        if (now := scene.live.slots.get(slot)) is not None:
            labels = (*_labels(scene, slot, now), str(code))
            total.add_metric(labels, count)
            last.add_metric(labels, at)
    yield total
    yield last


def _telemetry(scene: Scene) -> Iterator[Metric]:
    rig, live = scene.facts.rig, scene.live
    sampler = (scene.beat or {}).get("processes", {}).get("sampler", {})
    for name, text, value in (
        ("last_sample_timestamp_seconds", "When the sampler reported last.", live.at),
        ("up", "Whether the sampler reports in time.", not live.stale),
        ("problem", "Whether the driver or the disk gives it trouble.", live.problem is not None and live.source != "cpu"),
    ):  # fmt: skip
        yield _one(f"overnight_telemetry_{name}", text, ("rig",), (rig,), value)
    stalls = CounterMetricFamily(
        "overnight_telemetry_stalls", "How often the sampler hung or died in a row.", labels=("rig",)
    )
    stalls.add_metric((rig,), sampler.get("deaths", 0))
    yield stalls


#: dcgm-exporter's names, in its units.
DCGM: tuple[tuple[str, Callable[[SlotNow], float | None]], ...] = (
    ("DCGM_FI_DEV_SM_CLOCK", lambda now: _scaled(now.sm_clock_hz, 1e-6)),
    ("DCGM_FI_DEV_MEM_CLOCK", lambda now: _scaled(now.memory_clock_hz, 1e-6)),
    ("DCGM_FI_DEV_GPU_TEMP", lambda now: now.temperature_c),
    ("DCGM_FI_DEV_MEMORY_TEMP", lambda now: now.memory_temperature_c),
    ("DCGM_FI_DEV_POWER_USAGE", lambda now: now.power_w),
    ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", lambda now: now.pcie_replays),
    ("DCGM_FI_DEV_GPU_UTIL", lambda now: _scaled(now.utilization_ratio, 100)),
    ("DCGM_FI_DEV_MEM_COPY_UTIL", lambda now: _scaled(now.memory_utilization_ratio, 100)),
    ("DCGM_FI_DEV_ENC_UTIL", lambda now: _scaled(now.encoder_ratio, 100)),
    ("DCGM_FI_DEV_FB_USED", lambda now: _scaled(now.memory_used_bytes, 2**-20)),
    ("DCGM_FI_DEV_FB_FREE", lambda now: _scaled(_free_bytes(now), 2**-20)),
)


def _dcgm(scene: Scene) -> Iterator[Metric]:
    """Under the names of dcgm-exporter, so that dashboards made for it work."""
    last = {slot: code for slot, code, _, _ in sorted(scene.xids, key=lambda found: found[3])}
    for name, value in DCGM:
        family = GaugeMetricFamily(name, f"As dcgm-exporter names it: {name}.", labels=DCGM_LABELS)
        for slot, now in _real(scene):
            if (reading := value(now)) is not None:
                family.add_metric(_dcgm_labels(scene, slot, now), reading)
        yield family
    energy = Metric("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "Energy since the driver was loaded, in mJ.", "counter")
    xid = GaugeMetricFamily("DCGM_FI_DEV_XID_ERRORS", "The last XID.", labels=DCGM_LABELS)
    for slot, now in _real(scene):
        labels = _dcgm_labels(scene, slot, now)
        xid.add_metric(labels, last.get(slot, 0))
        if now.energy_j is not None:  # a counter of this client's would end with _total: that is not DCGM's name
            energy.add_sample(energy.name, dict(zip(DCGM_LABELS, labels, strict=True)), now.energy_j * 1000)
    yield energy
    yield xid


DCGM_LABELS = ("gpu", "UUID", "device", "modelName", "Hostname")


def _dcgm_labels(scene: Scene, slot: str, now: SlotNow) -> tuple[str, ...]:
    return str(now.index), slot, f"nvidia{now.index}", now.name, scene.host


def _real(scene: Scene) -> Iterable[tuple[str, SlotNow]]:
    return ((slot, now) for slot, now in scene.live.slots.items() if not slot.startswith("cpu:"))


def _one(name: str, text: str, labels: Sequence[str], values: Sequence[str], value: float | None) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    if value is not None:
        family.add_metric(values, value)
    return family


def _each(
    family: GaugeMetricFamily | CounterMetricFamily, scene: Scene, value: Callable[[SlotNow], float | None]
) -> Metric:
    """What cannot be read has no series."""
    for slot, now in scene.live.slots.items():
        if (reading := value(now)) is not None:
            family.add_metric(_labels(scene, slot, now), reading)
    return family


def _labels(scene: Scene, slot: str, now: SlotNow) -> tuple[str, ...]:
    return scene.facts.rig, str(now.index), slot, now.name


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _free_bytes(now: SlotNow) -> int | None:
    if now.memory_total_bytes is None or now.memory_used_bytes is None:
        return None
    return now.memory_total_bytes - now.memory_used_bytes
