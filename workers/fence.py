"""The last resort of a rig that is cut off from a shared queue: end the run before another rig may take it for lost.

A thread of its own, because the keeper may be stuck in a call to a Redis that does not answer, or in the look-up of its name.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict

from jobs.outcome import Exit, StoppedFor
from jobs.rundir import RunDir, write_json

#: The run is over this long before its lease ends: time for its whole process tree to be swept.
MARGIN_S = 5.0
#: At most this part of the lease, for short ones.
MARGIN_PART = 1 / 3
#: The keeper, woken by its child's death, tells and leaves; later than this it is stuck itself, and is ended.
KEEPER_PATIENCE_S = 1.0
REASON = "This rig could not reach the queue until its lease was nearly over."


class SelfFence:
    """Kills the child when the lease was not renewed in time."""

    def __init__(
        self,
        pidfd: int,
        fence: int,
        folder: RunDir,
        lease_s: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ):
        self._pidfd, self._fence, self._folder, self._monotonic = pidfd, fence, folder, monotonic
        self._after_s = lease_s - min(MARGIN_S, lease_s * MARGIN_PART)
        self._renewed = monotonic()
        self._over = threading.Event()
        self.fired = False
        threading.Thread(target=self._watch, name="fence", daemon=True).start()

    def renewed(self, at: float) -> None:
        """The lease was renewed by a call that began at this monotonic time."""
        self._renewed = at

    def stop(self) -> None:
        """The child has ended: call it before the child is collected."""
        self._over.set()

    def _watch(self) -> None:
        while (left_s := self._renewed + self._after_s - self._monotonic()) > 0:
            if self._over.wait(left_s):
                return
        self.fired = True
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except (ProcessLookupError, OSError):
            return  # it has ended by itself
        if not self._over.wait(KEEPER_PATIENCE_S):
            told = Exit(fence=self._fence, signal=signal.SIGKILL, stopped_for=StoppedFor.NOT_OURS, reason=REASON)
            write_json(self._folder.exit, asdict(told))
            os.kill(os.getpid(), signal.SIGKILL)  # the worker sweeps what is left
