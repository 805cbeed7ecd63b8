"""What the checks on a real NVIDIA GPU share."""

import subprocess
import sys

import pytest

from daemon.gpus import Gpu, discover


@pytest.fixture(scope="session")
def cuda() -> None:
    """Asked in a process of its own: this one must not hold the card."""
    found = subprocess.run([sys.executable, "-c", "import torch; print(torch.cuda.is_available())"], capture_output=True, text=True)  # fmt: skip
    if found.stdout.strip() != "True":
        pytest.skip("torch sees no GPU here")


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    """The first card that no MIG splits."""
    found = discover()
    whole = [gpu for gpu in found.gpus if not gpu.mig]
    if not whole:
        pytest.skip(found.problem or "every GPU is split by MIG")
    return whole[0]
