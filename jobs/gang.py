"""One attempt on several GPUs: a process for each of them, started, watched and ended together. Loads no torch.

A rank is `python -m jobs RUN_FOLDER --rank` with its number in the environment, forked where torch is loaded already. It sees one GPU,
carries the mark of the rig, is a child of this process and dies with it. When one rank ends badly, all are ended at once: the
others would wait for it in a collective call. What the ranks say of their ends is judged here, and is the attempt's own end.
"""

import os
import selectors
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from jobs import parallel, process
from jobs.model import Cause, End
from jobs.ranks import LISTENS, LOOPBACK, LOOPBACK_DEVICE
from jobs.run import EXIT_INTERRUPTED, Interrupted, JobError, Run
from jobs.rundir import read_json

RANK_WORD = "--rank"

#: How often a wish to stop is passed on.
TICK_S = 0.25
#: A rank that loses sight of another one may end before that one's end is told here.
SETTLING_S = 0.5
#: When the first rank is done the others have nothing more to do.
PARTING_S = 10.0
#: What a rank says when it only lost sight of another one, or of everything.
CONSEQUENCES = (Cause.USER_ERROR, Cause.FETCH)


@dataclass
class _Rank:
    """A process of the gang."""

    number: int
    pid: int
    result: Path
    handle: int = field(init=False)
    #: Exit status; negative: the signal that ended it. None while it runs.
    code: int | None = None

    def __post_init__(self) -> None:
        self.handle = os.pidfd_open(self.pid)

    @property
    def is_well(self) -> bool:
        return self.code in (None, 0, EXIT_INTERRUPTED)

    def send(self, sig: signal.Signals) -> None:
        if self.code is None:
            signal.pidfd_send_signal(self.handle, sig)

    def collect(self, options: int = 0) -> None:
        """Take note of its end, when it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, options)
            self.code = os.waitstatus_to_exitcode(status) if pid else None


def is_needed(spec: Mapping[str, Any]) -> bool:
    """Whether this document's attempt has several processes."""
    return parallel.processes(spec) > 1


def run(run: Run) -> dict[str, Any]:
    """Run the ranks of this attempt to their end. Returns the first one's metrics. Raises as a recipe does."""
    results = run.folder.rank_results
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    try:
        with selectors.DefaultSelector() as selector:
            return _Gang(run, selector).run()
    finally:
        shutil.rmtree(results, ignore_errors=True)


class _Gang:
    """All ranks of one attempt."""

    def __init__(self, run: Run, selector: selectors.BaseSelector):
        self._run, self._selector = run, selector
        self._ranks: list[_Rank] = []
        self._oom_kills = process.oom_kills()

    def run(self) -> dict[str, Any]:
        try:
            self._start()
            self._watch()
        finally:
            self._end()
        return self._judge()

    def _start(self) -> None:
        count = int(self._run.order.spec["gpus"])
        signal.signal(signal.SIGUSR1, self._dump_stacks)
        # bound before anybody knows its number: no other process can come between
        with socket.create_server((LOOPBACK, 0)) as listens:
            for number in range(count):
                environment = rank_environment(os.environ, number, count, listens.getsockname()[1], listens.fileno())
                self._ranks.append(self._rank(number, environment, listens))

    def _rank(self, number: int, environment: Mapping[str, str], listens: socket.socket) -> _Rank:
        from jobs.__main__ import main  # which imports us

        folder = self._run.folder
        reads, writes = os.pipe()
        keep = (listens.fileno(),) if number == 0 else ()
        if "torch" in sys.modules:
            pid = process.fork(lambda: main(folder.path, as_rank=True), environment, folder.path, writes)
        else:
            arguments = ["-m", "jobs", str(folder.path), RANK_WORD]
            pid = process.execute(arguments, environment, folder.path, writes, keep)
        os.close(writes)
        rank = _Rank(number, pid, folder.rank_result(number))
        self._selector.register(reads, selectors.EVENT_READ, _Output(number))
        self._selector.register(rank.handle, selectors.EVENT_READ, rank)
        return rank

    def _watch(self) -> None:
        """Return when the first rank has ended well and the others had time for it, or when any has ended badly."""
        told, leaves_at = False, None
        while any(rank.code is None for rank in self._ranks) and all(rank.is_well for rank in self._ranks):
            if self._run.stop_requested and not told:
                told = True
                self._send(signal.SIGTERM)
            self._look(TICK_S)
            if self._ranks[0].code is not None:
                leaves_at = leaves_at or time.monotonic() + PARTING_S
                if time.monotonic() > leaves_at:
                    return
        settled_at = time.monotonic() + SETTLING_S
        while not self._is_clear and (left_s := settled_at - time.monotonic()) > 0:
            self._look(left_s)

    @property
    def _is_clear(self) -> bool:
        """Whether nothing more is to be learnt of how it ended: all have ended, or one was killed."""
        return all(rank.code is not None for rank in self._ranks) or any((rank.code or 0) < 0 for rank in self._ranks)

    def _look(self, seconds: float) -> bool:
        """Take in what comes within this time: output, and ends. Whether anything came."""
        events = self._selector.select(seconds)
        for key, _ in events:
            if isinstance(key.data, _Rank):
                key.data.collect()
                self._selector.unregister(key.fd)
            elif not key.data.pass_on(key.fd):
                self._selector.unregister(key.fd)
                os.close(key.fd)
        return bool(events)

    def _end(self) -> None:
        """Nobody is left. Those that have just ended are told apart from those that are ended here."""
        for rank in self._ranks:
            rank.collect(os.WNOHANG)
        self._ended_themselves = [rank for rank in self._ranks if rank.code is not None]
        self._send(signal.SIGKILL)
        for rank in self._ranks:
            rank.collect()
        while any(isinstance(key.data, _Output) for key in self._selector.get_map().values()) and self._look(0.0):
            pass  # their last words
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, _Output):
                os.close(key.fd)
        for rank in self._ranks:
            os.close(rank.handle)

    def _judge(self) -> dict[str, Any]:
        """What the ranks' ends mean for the attempt."""
        if self._ranks[0] in self._ended_themselves and self._ranks[0].is_well:
            told = read_json(self._ranks[0].result) or {}
            if told.get("end") == End.SUCCEEDED:
                return dict(told["metrics"])
            if told.get("end") == End.CHECKED:  # what the preflight measured
                return dict(told["learned"])
            raise Interrupted
        bad = [rank for rank in self._ended_themselves if not rank.is_well]
        if self._run.stop_requested and all(rank.code == -signal.SIGTERM for rank in bad):
            raise Interrupted  # asked before it could listen
        raise self._failure(bad)

    def _failure(self, bad: Iterable[_Rank]) -> JobError:
        """The rank that began it, and not those that failed because it was gone."""
        # also of one that had told it and was still on its way out
        every = [(rank, result) for rank in self._ranks if (result := read_json(rank.result))]
        failed = [each for each in every if each[1]["end"] == End.FAILED]
        told = sorted(failed, key=lambda each: each[0].result.stat().st_mtime_ns)
        first = next((each for each in told if each[1]["cause"] not in CONSEQUENCES), None)
        killed = next((rank for rank in bad if rank.code is not None and rank.code < 0), None)
        if first is None and killed is not None:
            return self._killed(killed)
        if first is None and told:
            first = told[0]
        if first is None:
            lost = next(iter(bad))
            return JobError(Cause.USER_ERROR, f"Rank {lost.number} exited with status {lost.code} and left no result.")
        rank, result = first
        alone = len(told) < len(self._ranks) or any(each["message"] != result["message"] for _, each in told)
        return JobError(
            Cause(result["cause"]),
            f"Rank {rank.number}: {result['message']}" if rank.number and alone else result["message"],
            result["hint"],
            next_fields=result["next_fields"],
            learned=result["learned"],
        )

    def _killed(self, rank: _Rank) -> JobError:
        sig = -(rank.code or 0)
        name = signal.Signals(sig).name if sig in set(signal.Signals) else str(sig)
        if sig == signal.SIGKILL and process.oom_kills() > self._oom_kills:
            message = f"The machine's memory ran out, and rank {rank.number} was killed for it."
            return JobError(Cause.OOM_HOST, message, "Use a smaller model or data set, or fewer GPUs.")
        message = f"Rank {rank.number} of {len(self._ranks)} was killed by {name}, which Overnight did not send."
        return JobError(Cause.SIGNAL, message, "It goes on from its last whole checkpoint.")

    def _send(self, sig: signal.Signals) -> None:
        for rank in self._ranks:
            rank.send(sig)

    def _dump_stacks(self, _signal: int, _frame: FrameType | None) -> None:
        self._send(signal.SIGUSR1)


@dataclass
class _Output:
    """What a rank prints, passed on line by line with its number; the first one's without."""

    number: int
    torn: bytes = b""

    def pass_on(self, descriptor: int) -> bool:
        """Whether more may come."""
        read = os.read(descriptor, 1 << 16)
        *lines, self.torn = (self.torn + read).split(b"\n") if read else [self.torn, b""]
        mark = f"[rank {self.number}] ".encode() if self.number else b""
        words = b"".join(mark + line + b"\n" for line in lines if line or read)
        if words:
            sys.stdout.flush()
            os.write(1, words)
        return bool(read)


def rank_environment(base: Mapping[str, str], number: int, count: int, port: int, listens: int) -> dict[str, str]:
    """The environment of one rank: its own GPU and threads, and how to find the others, as torch and accelerate read it."""
    gpus = base["CUDA_VISIBLE_DEVICES"].split(",") if "CUDA_VISIBLE_DEVICES" in base else list(map(str, range(count)))
    found = {
        **base,
        # each sees one GPU, and therefore keeps no context on another one's
        "CUDA_VISIBLE_DEVICES": gpus[number] if number < len(gpus) else "",
        "RANK": str(number),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": LOOPBACK_DEVICE,
        "NCCL_SOCKET_IFNAME": LOOPBACK_DEVICE,
        LISTENS: str(listens),
    }
    for name in ("OVERNIGHT_CPU_THREADS", "OMP_NUM_THREADS"):
        if base.get(name, "").isdigit():
            found[name] = str(max(1, int(base[name]) // count))
    return found
