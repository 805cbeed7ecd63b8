"""Calls of the NVIDIA driver, and what follows when one fails. Of the daemon the one module that imports pynvml; only the processes
of the sampler and of `daemon.power` do. (A benchmark reads the energy counter of its own GPU in its own process:
`jobs.energy_counter`.)

Four kinds of answers are no readings, and each has its consequence:

    refused for good    not supported, no such function        that call is never made again on that GPU
    of the moment       unknown error, timeout                 the cell stays empty; five in a row: the GPU is `suspect`
    of the GPU          lost, needs a reset, silent for 2 s    the GPU rests and is asked again later; the others go on
    of the library      driver reloaded or replaced            everything is shut down and begun anew (`daemon.driver`)
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

# nvmlReturn_t
NOT_FOUND, INSUFFICIENT_SIZE, DRIVER_NOT_LOADED, TIMEOUT, LIBRARY_NOT_FOUND, VERSION_MISMATCH = 6, 7, 9, 10, 12, 18
ABSENT = {3, 4, 13, 26}  # not supported, no permission, function not found, deprecated
GPU_OUT = {11, 15, 16}  # interrupt trouble, GPU is lost, reset required
LIBRARY_OUT = {1, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, VERSION_MISMATCH, 28}  # 1: uninitialized, 28: GPU not found

SLOW_CALL_S = 2.0


class GpuTrouble(Exception):
    """One GPU is out, in this state."""

    def __init__(self, state: str, reason: str) -> None:
        super().__init__(reason)
        self.state = state


class DriverTrouble(Exception):
    """The library is out, and all GPUs with it; the message is a sentence for people."""

    def __init__(self, words: str, *, replaced: bool = False) -> None:
        super().__init__(words)
        self.replaced = replaced


def load_binding() -> Any:
    """The module of nvidia-ml-py. Raises DriverTrouble when the package is not installed."""
    try:
        import pynvml
    except ModuleNotFoundError:
        raise DriverTrouble("The package nvidia-ml-py (extra [rig]) is not installed: CPU slots are used.") from None
    return pynvml


def explain(error: Any) -> str:
    """A sentence for an NVMLError that concerns the whole driver."""
    name = type(error).__name__
    if error.value == LIBRARY_NOT_FOUND:
        return f"No NVIDIA driver was found ({name}): CPU slots are used."
    if error.value == DRIVER_NOT_LOADED:
        return f"The NVIDIA driver is not loaded ({name}): CPU slots are used. `sudo modprobe nvidia` loads it."
    if error.value == VERSION_MISMATCH:
        return f"The NVIDIA driver was updated while in use ({name}): no GPU can start new work until a reboot."
    return f"The NVIDIA driver does not answer ({name}): `nvidia-smi` and the kernel log say more."


def raise_for_driver(error: Any) -> None:
    """Raise DriverTrouble for an NVMLError that is not about one GPU alone."""
    if error.value in LIBRARY_OUT:
        raise DriverTrouble(explain(error), replaced=error.value == VERSION_MISMATCH)


class Calls:
    """Calls about one GPU. `handle`: the driver's own; None while the GPU is not to be asked."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self.handle = handle
        #: Calls that this GPU does not know.
        self.never: set[str] = set()
        #: How often in a row each call has had no answer.
        self.misses: Counter[str] = Counter()
        #: What went wrong last, for people.
        self.reason = ""

    def ask(self, call: str, *arguments: Any, **options: Any) -> Any | None:
        """The answer of `nvmlDeviceGet<call>`, or None where there is none. Raises GpuTrouble and DriverTrouble."""
        key = " ".join([call, *(str(argument) for argument in arguments if isinstance(argument, int)), *options])
        return self.attempt(
            key, lambda: getattr(self._nvml, f"nvmlDeviceGet{call}")(self.handle, *arguments, **options)
        )

    def or_ask(self, value: Any | None, call: str, *arguments: Any) -> Any | None:
        """The value, or where there is none the answer of another call."""
        return self.ask(call, *arguments) if value is None else value

    def attempt(self, key: str, call: Callable[[], Any]) -> Any | None:
        """The answer of `call`, by whose `key` its failures are remembered; None where there is none. Raises as `ask` does."""
        if key in self.never:
            return None
        started = time.monotonic()
        try:
            answer = call()
        except self._nvml.NVMLLibraryMismatchError:  # not an NVMLError: an older driver lacks the symbol
            self.never.add(key)
            return None
        except UnicodeDecodeError:  # the binding takes texts for UTF-8: a broken name must not cost the GPU
            self.never.add(key)
            return None
        except self._nvml.NVMLError as error:
            self._weigh(key, error)
            return None
        if (took_s := time.monotonic() - started) > SLOW_CALL_S:
            raise GpuTrouble("stale", f"{key} took {took_s:.1f} s")
        self.misses.pop(key, None)
        return answer

    def _weigh(self, key: str, error: Any) -> None:
        raise_for_driver(error)
        if error.value in GPU_OUT:
            raise GpuTrouble("lost", f"{key} answered {type(error).__name__}")
        if error.value in ABSENT:
            self.never.add(key)
        else:
            self.misses[key] += 1
            self.reason = f"{key} answered {type(error).__name__}"
