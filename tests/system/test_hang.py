"""A recipe that hangs leaves its stack behind, is ended, and goes on once more."""

import os
import subprocess
import sys
from pathlib import Path

from daemon.settings import Settings
from daemon.store import Store
from jobs.model import Cause, State
from jobs.outcome import StoppedFor, judge
from jobs.run import Order
from jobs.rundir import run_dir
from jobs.spec import parse
from workers.child import Child
from workers.keeper import Keeper

HANGS = """
import sys, threading
from pathlib import Path
from jobs.run import Order, Run
from jobs.rundir import RunDir
folder = RunDir(Path(sys.argv[1]))
run = Run(folder, Order.read(folder))
run.dump_stacks_on_sigusr1()
for step in range(5):
    run.progress(step=step, total=100, phase="training")
    threading.Event().wait(0.4)
def stuck_in_a_kernel():
    threading.Event().wait()
stuck_in_a_kernel()
"""


def test_a_hang_is_told_from_silence_and_leaves_every_threads_stack(store: Store, home: Path) -> None:
    settings = Settings(home=home, rig="rig", hang_after_s=1.0, grace_s=0.2)
    store.submit([parse({"kind": "generate", "model": "m", "data": "d"})], now=0.0)
    job = store.offer("1", rig="rig", slots=("cpu:0",), epoch=store.new_epoch("rig"), now=0.0)
    job = store.claim("1", fence=job.fence, owner="me", now=0.0, lease_s=60.0)
    folder = run_dir(settings.runs, "1")
    folder.create()
    Order(job_id="1", attempt=1, fence=1, resume=False, spec=job.spec).write(folder)
    process = subprocess.Popen([sys.executable, "-c", HANGS, str(folder.path)])
    process.returncode = 0  # the keeper collects it
    told = Keeper(store, settings, job, folder, Child(process.pid)).keep()
    assert told.stopped_for is StoppedFor.HANG and "training" in told.reason
    assert "stuck_in_a_kernel" in folder.stacks.read_text()
    assert folder.gpu.exists()
    outcome = judge(fence=1, result=None, exit=told)
    assert outcome.cause is Cause.HANG
    assert store.finish("1", fence=1, outcome=outcome, now=9.0).state is State.QUEUED
    assert not os.path.exists(f"/proc/{process.pid}")
