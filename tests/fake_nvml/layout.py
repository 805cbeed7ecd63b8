"""The fake driver's shared state: one mapped file that the library and the tests both see.

These structures are the only definition. `header()` makes the C side from them, with an assertion on every size and
offset, so the two cannot disagree.
"""

import ctypes
from ctypes import Structure, c_char, c_uint32, c_uint64
from typing import Any

MAX_GPUS, MAX_PROCESSES, MAX_FIELDS, MAX_EVENTS = 8, 16, 320, 64
MAGIC = 0x464E564D4C303033  # "FNVML003"

#: Every entry point that can be counted, delayed or made to fail.
FUNCTIONS = """
    Init Shutdown Driver ProcessName Count HandleByIndex HandleByUuid HandleByPciBusId
    Index Name Uuid PciInfo MinorNumber Serial Brand Architecture CudaCapability Vbios
    Persistence Display ComputeMode MigMode AccountingMode
    Memory MemoryV2 Bar1 Utilization Encoder Decoder Temperature TemperatureV Threshold Margin
    Power PowerLimit EnforcedLimit DefaultLimit LimitRange SetPowerLimit Energy Clock MaxClock PState Reasons SupportedReasons
    PcieGeneration PcieWidth PcieMaxGeneration PcieMaxWidth PcieThroughput PcieReplay
    Fan FanCount FanRpm Ecc EccMode RemappedRows RetiredPages
    ComputeProcesses GraphicsProcesses MpsProcesses ProcessUtilization FieldValues
    EventTypes EventCreate EventRegister EventWait EventFree
""".split()  # noqa: SIM905 - a table reads better


class Process(Structure):
    _fields_ = (
        ("pid", c_uint32),
        ("kinds", c_uint32),  # bits: 1 compute, 2 graphics, 4 MPS
        ("memory", c_uint64),
        ("sm", c_uint32),
        ("memory_busy", c_uint32),
    )


class Field(Structure):
    """A scripted answer for one field id; used when `set` is not 0."""

    _fields_ = (("set", c_uint32), ("ret", c_uint32), ("type", c_uint32), ("pad", c_uint32), ("value", c_uint64))


class Gpu(Structure):
    _fields_ = (
        ("uuid", c_char * 96),
        ("name", c_char * 96),
        ("bus_id", c_char * 32),
        ("serial", c_char * 32),
        ("lost", c_uint32),  # what every call on this GPU returns; 0: it is well
        ("arch", c_uint32),
        ("cc_major", c_uint32),
        ("cc_minor", c_uint32),
        ("brand", c_uint32),
        ("util", c_uint32),
        ("memory_busy", c_uint32),
        ("encoder", c_uint32),
        ("decoder", c_uint32),
        ("temp", c_uint32),
        ("threshold", c_uint32 * 8),
        ("power_mw", c_uint32),
        ("limit_mw", c_uint32),
        ("default_mw", c_uint32),
        ("min_mw", c_uint32),
        ("max_mw", c_uint32),
        ("pstate", c_uint32),
        ("clock", c_uint32 * 4),
        ("max_clock", c_uint32 * 4),
        ("pcie_generation", c_uint32),
        ("pcie_width", c_uint32),
        ("pcie_max_generation", c_uint32),
        ("pcie_max_width", c_uint32),
        ("pcie_replays", c_uint32),
        ("fan", c_uint32),
        ("fan_rpm", c_uint32),
        ("fan_count", c_uint32),
        ("ecc", c_uint32),
        ("ecc_corrected", c_uint32),
        ("ecc_uncorrected", c_uint32),
        ("persistence", c_uint32),
        ("display", c_uint32),
        ("mig", c_uint32),  # 0: not supported, 1: off, 2: on
        ("process_count", c_uint32),
        ("recovery", c_uint32),
        ("pad", c_uint32),
        ("reasons", c_uint64),
        ("memory_total", c_uint64),
        ("memory_reserved", c_uint64),
        ("memory_used", c_uint64),
        ("energy_mj", c_uint64),  # up to energy_since_ns; from there on it grows with power_mw
        ("energy_since_ns", c_uint64),
        ("throttled_ns", c_uint64 * 4),  # by power cap, software thermal, hardware thermal, power brake; from
        ("throttled_since_ns", c_uint64 * 4),  # here on, where it is not 0, they grow with the time
        ("process", Process * MAX_PROCESSES),
        ("ret", c_uint32 * len(FUNCTIONS)),  # what one call on this GPU returns instead of its answer
        ("field", Field * MAX_FIELDS),
    )


class Event(Structure):
    _fields_ = (("gpu", c_uint32), ("pad", c_uint32), ("type", c_uint64), ("data", c_uint64))


class State(Structure):
    _fields_ = (
        ("magic", c_uint64),
        ("gpu_count", c_uint32),
        ("init_ret", c_uint32),
        ("generation", c_uint32),  # rises when the driver is reloaded: older handles are dead
        ("wait_ret", c_uint32),
        ("cuda_version", c_uint32),
        ("pad", c_uint32),
        ("driver_version", c_char * 80),
        ("nvml_version", c_char * 80),
        ("event_seq", c_uint64),
        ("event", Event * MAX_EVENTS),
        ("delay_us", c_uint32 * len(FUNCTIONS)),
        ("calls", c_uint64 * len(FUNCTIONS)),  # written by the library
        ("gpu", Gpu * MAX_GPUS),
    )


def header() -> str:
    """The C header of these structures."""
    lines = ["#include <stddef.h>", "#include <stdint.h>"]
    for name in ("MAX_GPUS", "MAX_PROCESSES", "MAX_FIELDS", "MAX_EVENTS"):
        lines.append(f"#define {name} {globals()[name]}")
    lines.append(f"#define FAKE_MAGIC {MAGIC:#x}ull")
    lines.append("enum { " + ", ".join(f"F_{name}" for name in FUNCTIONS) + " };")
    for structure in (Process, Field, Gpu, Event, State):
        lines += _struct(structure)
    return "\n".join(lines) + "\n"


def _struct(structure: type[Structure]) -> list[str]:
    name = structure.__name__
    fields: list[tuple[str, Any]] = [(field[0], field[1]) for field in structure._fields_]
    members = [f"  {_c_type(kind)} {field}{_dimensions(kind)};" for field, kind in fields]
    offsets = [
        f'_Static_assert(offsetof({name}, {field}) == {getattr(structure, field).offset}, "{name}.{field}");'
        for field, _ in fields
    ]
    size = f'_Static_assert(sizeof({name}) == {ctypes.sizeof(structure)}, "{name}");'
    return ["typedef struct {", *members, f"}} {name};", size, *offsets]


def _c_type(kind: Any) -> str:
    while hasattr(kind, "_length_"):
        kind = kind._type_
    if issubclass(kind, Structure):
        return kind.__name__
    if kind is c_char:
        return "char"
    return f"uint{8 * ctypes.sizeof(kind)}_t"


def _dimensions(kind: Any) -> str:
    sizes = ""
    while hasattr(kind, "_length_"):
        sizes += f"[{kind._length_}]"
        kind = kind._type_
    return sizes
