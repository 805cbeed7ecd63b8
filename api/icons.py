"""Draws the icons that phones want as pictures: `python -m api.icons` writes them beside the SVG. Pure geometry, no library.

The moon is a disc that another one cuts; a small disc is the morning. Units are those of `icon.svg`: 32 to a side.
"""

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "static"
GROUND, MOON, MORNING = (0x12, 0x17, 0x25), (0xA9, 0xBF, 0xFF), (0xFF, 0xC2, 0x6B)


@dataclass(frozen=True)
class Disc:
    """A circle; `cover` is the share of a small square around a point that lies inside."""

    x: float
    y: float
    r: float

    def cover(self, x: float, y: float, unit: float) -> float:
        return min(1.0, max(0.0, 0.5 + (self.r - math.hypot(x - self.x, y - self.y)) / unit))


FULL, SHADOW, DAWN = Disc(14.6, 16.6, 9.6), Disc(18.9, 12.5, 8.6), Disc(23.4, 9.2, 2.5)
#: Size in pixels, corner radius (of 32), and how far the drawing is drawn in: a mask may cut the rest off.
ICONS = {"icon-180.png": (180, 0.0, 1.0), "icon-192.png": (192, 7.0, 1.0), "icon-512.png": (512, 7.0, 1.0), "icon-mask.png": (512, 0.0, 0.8)}  # fmt: skip


def picture(size: int, corner: float, scale: float) -> bytes:
    """The icon as a PNG."""
    unit = 32 / size
    rows = bytearray()
    for row in range(size):
        rows.append(0)  # this line is not filtered
        y = (row + 0.5) * unit
        for column in range(size):
            rows += pixel((column + 0.5) * unit, y, unit, corner, scale)
    return png(size, bytes(rows))


def pixel(x: float, y: float, unit: float, corner: float, scale: float) -> bytes:
    """Red, green, blue and how much of it is there."""
    alpha = _square(x, y, unit, corner)
    if alpha <= 0:
        return b"\0\0\0\0"
    inner, step = ((x - 16) / scale + 16, (y - 16) / scale + 16), unit / scale
    moon = FULL.cover(*inner, step) * (1 - SHADOW.cover(*inner, step))
    dawn = DAWN.cover(*inner, step)
    mixed = (_mix(_mix(g, m, moon), d, dawn) for g, m, d in zip(GROUND, MOON, MORNING, strict=True))
    return bytes((*(round(value) for value in mixed), round(255 * alpha)))


def png(size: int, rows: bytes) -> bytes:
    """A picture of 8-bit RGBA from its lines, each after its filter's number."""
    header = struct.pack(">IIBBBBB", size, size, 8, 6, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _square(x: float, y: float, unit: float, corner: float) -> float:
    """A rounded square as large as the picture."""
    if corner <= 0:
        return 1.0
    nearest = Disc(min(max(x, corner), 32 - corner), min(max(y, corner), 32 - corner), corner)
    return nearest.cover(x, y, unit)


def _mix(under: float, over: float, share: float) -> float:
    return under + (over - under) * share


if __name__ == "__main__":
    for name, (size, corner, scale) in ICONS.items():
        (FOLDER / name).write_bytes(picture(size, corner, scale))
