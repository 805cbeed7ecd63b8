"""The fault drill in short: a handful of faults of every sort over a real rig, with the same checks as the long one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DRILL = Path(__file__).parent.parent / "drill"
#: Kinds that are over within moments; the long drill has them all.
QUICK = ("killed", "deleted", "doubled", "forged", "preempted", "cancelled", "power cut", "torn", "for a while")


@pytest.mark.drill
def test_a_short_drill_breaks_no_promise() -> None:
    words = [word for kind in QUICK for word in ("--only", kind)]
    argv = [sys.executable, str(DRILL), "--faults", "16", "--minutes", "0.4", "--jobs", "4", *words]
    seed = os.environ.get("DRILL_SEED", "7")
    done = subprocess.run([*argv, "--seed", seed], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    assert "0 violations" in done.stdout
