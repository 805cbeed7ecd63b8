"""From an exception inside an attempt to its cause, with a sentence and a hint for the owner."""

import errno
import resource
import signal
from collections.abc import Iterator, Mapping
from typing import Any

from jobs import batches
from jobs.model import Cause
from jobs.run import JobError

#: Packages whose errors mean that something could not be fetched.
NETWORK_PACKAGES = ("httpx", "httpcore", "requests", "urllib3", "huggingface_hub")


def classify(error: BaseException, spec: Mapping[str, Any]) -> JobError:
    """The job's failure for an exception that its recipe did not expect."""
    errors = list(chain(error))
    if any(_is_gpu_oom(e) for e in errors):
        return gpu_out_of_memory(spec)
    if any(is_disk_full(e) for e in errors):
        return JobError(Cause.DISK_FULL, "The disk is full.", "Free some space; the job goes on by itself then.")
    if any(isinstance(e, MemoryError) for e in errors):
        return JobError(Cause.OOM_HOST, "The machine's memory ran out.", "Use a smaller model, batch or data set.")
    if any(type(e).__module__.split(".")[0] in NETWORK_PACKAGES or isinstance(e, ConnectionError) for e in errors):
        return JobError(Cause.FETCH, f"Something could not be downloaded: {_words(error)}", "It is tried again.")
    return JobError(Cause.USER_ERROR, _words(error), "The log has the traceback.")


def killed(name: str, number: int, *, oom: bool) -> JobError:
    """A program of the attempt's own that a signal has ended. `oom`: the kernel has counted a kill for memory meanwhile."""
    if number == signal.SIGKILL and oom:
        peak_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # Linux counts KiB: getrusage(2)
        message = f"The machine's memory ran out; {name} was killed, its largest process had {peak_gib:.1f} GiB."
        return JobError(Cause.OOM_HOST, message, "Let it use less memory at once.")
    word = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return JobError(Cause.SIGNAL, f"{name} was killed by {word}, which Overnight did not send.")


def gpu_out_of_memory(spec: Mapping[str, Any]) -> JobError:
    """Half the micro-batch with twice the accumulation: the same effective batch. At 1 there is nothing left to halve."""
    for batch, accumulation in (("per_device_train_batch_size", "gradient_accumulation_steps"), ("batch_size", None)):
        size, least = int(spec.get(batch) or 0), batches.least(spec.get("objective"))
        effective = size * int(spec[accumulation]) if size and accumulation else 0
        # 8 x 4 goes to 4 x 8, but 7 x 1 to 1 x 7: only what divides the effective batch keeps it
        smaller = next((s for s in range(size // 2, least - 1, -1) if effective % s == 0), 0)
        if smaller:
            changes: dict[str, int | None] = {batch: smaller}
            if accumulation:
                changes[accumulation] = effective // smaller
                if spec.get("effective_batch_size"):
                    changes["effective_batch_size"] = None  # what was found was too much: it is not looked for again
            return JobError(
                Cause.OOM_GPU,
                f"The GPU's memory ran out with {batch} = {size}.",
                f"It is tried again with {smaller} and the same effective batch.",
                next_fields=changes,
            )
    return JobError(
        Cause.OOM_GPU,
        f"The GPU's memory ran out, even {'one row' if batches.least(spec.get('objective')) == 1 else 'two rows'} at a time.",
        "Use a shorter max_length, gradient_checkpointing, or a smaller model.",
    )


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it, each one once: an error raised from itself must not be followed for ever."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def _is_gpu_oom(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this one error says that a GPU's memory, or the machine's, could not hold it."""
    return _is_gpu_oom(error) or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def is_disk_full(error: BaseException) -> bool:
    """Whether this one error says that there is no space."""
    # tokenizers raises a plain Exception with this text from Rust, not an OSError
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)


def _words(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
