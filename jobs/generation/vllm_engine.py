"""vLLM in an environment of its own: our requests as lines to a program that its Python runs, its answers as lines back.

vLLM pins torch and transformers to other versions than ours, so the two never share a process. The tokens are made here, by the
same chat template as with the other engines. Loads no torch.
"""

import json
import os
import selectors
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jobs.vllm_driver
from jobs.causes import killed
from jobs.generation.answers import Answer, Sample
from jobs.generation.engine import Deliver, Unsupported
from jobs.generation.requests import Problem, Request, longest_first
from jobs.generation.sampling import Sampling
from jobs.model import Cause
from jobs.process import oom_kills
from jobs.run import Interrupted, JobError, Run
from jobs.rundir import write_json

SHARD = 256
BEAT_EVERY_S = 1.0
STOP_PATIENCE_S = 20.0
#: Loading compiles kernels; a shard may be 256 long answers of a large model. Longer than that is a hang.
LOAD_S, SHARD_S = 1800.0, 3600.0
END_S = 10.0


class Vllm:
    """Engine: one program that is kept for all shards. Use as a context; entering it loads the model.

    Entering raises Unsupported with vLLM's own words when it cannot be used.
    """

    def __init__(self, run: Run, python: str, order: Mapping[str, Any]):
        self.name = "vLLM"
        self._run, self._python, self._order = run, python, order
        self._unread = b""
        self._kills_before = oom_kills()

    def __enter__(self) -> "Vllm":
        path = self._run.folder.checkpoints / "vllm.json"
        write_json(path, self._order, durable=False)
        folder = Path(jobs.vllm_driver.__file__).parent
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # our packages are not for that Python
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        try:
            self._process = subprocess.Popen(
                [self._python, str(folder), str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**environment, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
            )
        except OSError as error:
            raise Unsupported(f"{self._python} cannot be started ({error.strerror})") from None
        try:
            told = self._answer(LOAD_S)
            if "ready" not in told:
                raise Unsupported(self._last_words(told))
        except BaseException:  # a stop, too: what was started is ended with it
            self.__exit__()
            raise
        self.name = f"vLLM {told['ready']}"
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process.stdin:
            try:
                process.stdin.close()  # the end of its work
            except OSError:
                pass  # it is gone already
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()

    def answer(self, requests: Sequence[Request], deliver: Deliver) -> None:
        for shard in _shards(longest_first(requests)):
            if self._run.stop_requested:
                raise Interrupted
            told = self._shard(shard)
            found = {answer["key"]: answer for answer in told}
            deliver([_answer(request, found[request.key]) for request in shard])

    def _shard(self, shard: Sequence[Request]) -> list[dict[str, Any]]:
        line = json.dumps({"requests": [_asked(request) for request in shard]})
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its last words are still to be read
        told = self._answer(SHARD_S)
        if "answers" in told:
            return list(told["answers"])
        if self._run.stop_requested:
            raise Interrupted  # the stop ended it, too
        words = self._last_words(told)
        if "out of memory" in words.lower():
            raise JobError(Cause.OOM_GPU, f"vLLM ran out of memory: {words}", 'Use a smaller model, or engine = "transformers".')  # fmt: skip
        if self._killed_by:
            raise killed("vLLM", self._killed_by, oom=oom_kills() > self._kills_before)
        raise JobError(Cause.USER_ERROR, f"vLLM failed: {words}", 'The log has more. engine = "transformers" does without it.')  # fmt: skip

    def _last_words(self, told: Mapping[str, Any]) -> str:
        return str(told.get("fatal", "its program ended without a word"))[:500]

    @property
    def _killed_by(self) -> int:
        """The signal that ended the program; 0 when none did."""
        try:
            return max(0, -self._process.wait(END_S))
        except subprocess.TimeoutExpired:
            return 0

    def _answer(self, within_s: float) -> dict[str, Any]:
        """The program's next line; {} when it has ended. Beats meanwhile. Raises Interrupted, JobError."""
        began = time.monotonic()
        asked_at: float | None = None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if selector.select(BEAT_EVERY_S):
                    part = os.read(self._process.stdout.fileno(), 1 << 20)
                    if not part:
                        return {}
                    self._unread += part
                elif self._process.poll() is not None:
                    return {}  # processes of its own may keep the pipe open
                now = time.monotonic()
                self._run.beat()
                if self._run.stop_requested:
                    asked_at = asked_at or now
                    if now - asked_at > STOP_PATIENCE_S:
                        self._process.kill()
                        raise Interrupted
                if now - began > within_s:
                    self._process.kill()
                    raise JobError(Cause.HANG, f"vLLM said nothing for {within_s:.0f} s.", "It is tried again.")
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            value = json.loads(line)
        except ValueError:
            return {"fatal": f"it said {line[:100]!r}, which is no answer"}
        return value if isinstance(value, dict) else {}


def _shards(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    return (requests[start : start + SHARD] for start in range(0, len(requests), SHARD))


def _asked(request: Request) -> dict[str, Any]:
    return {
        "key": request.key,
        "tokens": list(request.tokens),
        "adapter": request.adapter,
        "sampling": parameters(request.sampling),
    }


def parameters(sampling: Sampling) -> dict[str, Any]:
    """By vLLM's names (SamplingParams)."""
    return {
        "n": sampling.n,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "stop": list(sampling.stop),
        "seed": sampling.seed_of(0) if sampling.temperature else None,
    }


def _answer(request: Request, told: Mapping[str, Any]) -> Answer:
    if "error" in told:
        return Answer(request, problem=Problem("engine_error", str(told["error"])[:500]))
    return Answer(request, [Sample(**sample) for sample in told["samples"]])
