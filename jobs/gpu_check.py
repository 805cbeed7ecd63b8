"""Compute on one GPU for a while and compare the results: `python -m jobs.gpu_check [--seconds S] [--device cuda]`.

For a GPU that had a fault, in a process that is thrown away. Exit status 0: it computed the same each time, and what the
CPU computes. Finds cards that fail under load; what fails once a week it does not find.
"""

import argparse
import sys
import time
from typing import Any

SIZE = 4096
SMALL = 256
#: Memory is filled and read back in pieces of so many bytes, up to this share of what is free.
PIECE_BYTES, SHARE = 256 << 20, 0.8
TOLERANCE = 1e-3


def check(device: str, seconds: float) -> str | None:
    """What is wrong; None when nothing was found."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return "CUDA cannot be initialised on it"
    small = torch.randn(SMALL, SMALL, generator=torch.Generator().manual_seed(1))
    theirs = (small.to(device) @ small.to(device)).cpu()
    if (theirs - small @ small).abs().max().item() > TOLERANCE * SMALL:
        return "a product differs from the CPU's"
    if device == "cuda" and (wrong := _memory(torch)):
        return wrong
    size = SIZE if device == "cuda" else SMALL
    left = torch.randn(size, size, device=device)
    expected = left @ left
    until, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        if not torch.equal(left @ left, expected):
            return f"the same product differed after {rounds} rounds"
        rounds += 1
    return None


def _memory(torch: Any) -> str | None:
    """Fill most of what is free with patterns and read it back."""
    free_bytes, _ = torch.cuda.mem_get_info()
    pieces = []
    for number in range(int(free_bytes * SHARE) // PIECE_BYTES):
        pieces.append(torch.full((PIECE_BYTES,), (number * 37 + 0x55) % 256, dtype=torch.uint8, device="cuda"))
    for number, piece in enumerate(pieces):
        if not bool((piece == (number * 37 + 0x55) % 256).all()):
            return f"memory did not keep its content (piece {number} of {len(pieces)})"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.gpu_check", description="Compute on a GPU and compare.")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--device", default="cuda")
    wanted = parser.parse_args()
    try:
        wrong = check(wanted.device, wanted.seconds)
    except RuntimeError as error:  # torch's name for whatever the driver says
        wrong = str(error).splitlines()[0]
    if wrong:
        print(wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
