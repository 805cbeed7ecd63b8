"""metrics.jsonl as TensorBoard reads it: one event file, without the packages (55 MB) that would write the same bytes.

The formats: a TFRecord is length, checksum, data, checksum (tensorflow/core/lib/io/record_writer.h); its data is an `Event`
(tensorflow/core/util/event.proto) in protobuf's encoding (protobuf.dev/programming-guides/encoding). Tests read it with tensorboard.
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from jobs.log import say
from jobs.metrics import is_finite
from jobs.rundir import RunDir, read_json_lines

NAME = "events.out.tfevents.{}.overnight"
#: TensorBoard's files, whoever wrote them.
ANY = "events.out.tfevents.*"
VERSION = b"brain.Event:2"
#: Of a line these are no metrics.
NOT_METRICS = ("step", "time")
#: Reversed polynomial of CRC-32C (Castagnoli), and what TFRecord adds to it.
POLYNOMIAL, MASK = 0x82F63B78, 0xA282EAD8


class EventFile:
    """The event file of one attempt."""

    def __init__(self, path: Path):
        self._path = path

    @classmethod
    def of(cls, folder: RunDir, attempt: int) -> Self:
        """With all that metrics.jsonl holds now, in place of earlier attempts' files: they have steps that a resume took back."""
        place = folder.tensorboard
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob(NAME.format("*")):
            old.unlink()
        path = place / NAME.format(f"{attempt:06d}")
        with path.open("wb") as file:
            file.write(_record(b"\x09" + struct.pack("<d", 0.0) + _field(3, VERSION)))
            file.writelines(map(_event, read_json_lines(folder.metrics)))
        return cls(path)

    def add(self, line: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl; what is not a number is left out."""
        with self._path.open("ab", buffering=0) as file:
            file.write(_event(line))


def render(folder: RunDir, attempt: int) -> None:
    """The whole file at once, for programs that write metrics.jsonl by themselves. Does nothing when there is none, nor beside
    files that the program wrote for TensorBoard itself. What cannot be written is told: it must not cost a result."""
    own = set(folder.tensorboard.glob(ANY)) - set(folder.tensorboard.glob(NAME.format("*")))
    if folder.metrics.is_file() and not own:
        try:
            EventFile.of(folder, attempt)
        except OSError as error:
            say(f"TensorBoard's file of this job is not written: {error.strerror}.")


def _event(line: Mapping[str, Any]) -> bytes:
    values = b"".join(_values(line))
    if not values:
        return b""
    step, at = _number(line.get("step")), _number(line.get("time"))
    # Event: 1 wall_time double, 2 step int64, 5 summary
    return _record(b"\x09" + struct.pack("<d", at) + b"\x10" + _varint(max(0, int(step))) + _field(5, values))


def _number(value: Any) -> float:
    """A step or a time; a program may have written anything there."""
    return float(value) if isinstance(value, (int, float)) and abs(value) < 2**53 else 0.0


def _values(line: Mapping[str, Any]) -> Iterator[bytes]:
    for name, value in line.items():
        if name in NOT_METRICS or not is_finite(value):
            continue
        tag = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
        # Summary: 1 value; Value: 1 tag, 2 simple_value float
        yield _field(1, _field(1, tag.encode(errors="replace")) + b"\x15" + struct.pack("<f", _narrow(value)))


def _narrow(value: float) -> float:
    """Into the range of a float of 32 bits."""
    return max(-3.4e38, min(3.4e38, value))


def _field(number: int, data: bytes) -> bytes:
    """A field of bytes."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF)


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = tuple(map(_entry, range(256)))
