"""All NVIDIA GPUs of the machine through one life of the driver after the other. For the sampler's process alone."""

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from daemon.gpus import Inventory
from daemon.nvml import Card, Owners
from daemon.nvml_calls import (
    TIMEOUT,
    VERSION_MISMATCH,
    DriverTrouble,
    GpuTrouble,
    explain,
    load_binding,
    raise_for_driver,
)
from daemon.samples import STATES, Sample

XID_EVENT = 8  # nvmlEventTypeXidCriticalError
#: After these the GPU's firmware is silent, and each call would block for seconds: stop asking.
SILENCING_XIDS = {119, 120}
SILENCED_S = 300.0
LONGEST_BACK_OFF_S = 300.0


class Driver:
    """What NVML knows. `read` does not raise for it: trouble stands in `problem` and in the state of each card."""

    def __init__(self, *, retry_s: float, watch_xids: bool, whose: Owners | None = None) -> None:
        self.cards: dict[str, Card] = {}
        self.problem: str | None = None
        #: Whether new CUDA processes would fail: the driver was replaced while it was in use.
        self.replaced = False
        self.xids: SimpleQueue[tuple[str, int]] = SimpleQueue()
        self._retry_s = retry_s
        self._whose = whose
        self._watch_xids = watch_xids
        self._watch: XidWatch | None = None
        self._nvml: Any = None  # set while the library is initialised
        self._unmet: set[int] = set()  # indexes that have not told their UUID in this life
        self._start_at = self._look_at = 0.0
        self._failures = 0

    def read(self, ts: int, *, at: float, thoroughly: bool) -> dict[str, Sample]:
        """A sample by UUID of each GPU ever met; `at` is the monotonic clock."""
        try:
            if not self._nvml and at >= self._start_at:
                self._start()
            if self._nvml:
                if self._unmet and at >= self._look_at:
                    self._look(at)
                samples = {uuid: self._read(card, ts, at, thoroughly) for uuid, card in self.cards.items()}
                self._failures = 0
                return samples
        except DriverTrouble as trouble:
            self.replaced = trouble.replaced
            self._stop(str(trouble), at)
        return {uuid: Sample(ts, state=STATES.index(card.state)) for uuid, card in self.cards.items()}

    def silence(self, uuid: str, xid: int, *, at: float) -> None:
        """Leave a GPU alone whose firmware this XID has declared dead."""
        if xid in SILENCING_XIDS:
            self.cards[uuid].rest("stale", f"XID {xid}: its firmware does not answer", until=at + SILENCED_S)

    def _start(self) -> None:
        nvml = load_binding()
        try:
            nvml.nvmlInit()
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            raise DriverTrouble(explain(error), replaced=error.value == VERSION_MISMATCH) from None
        self.replaced = False
        self._nvml, self._unmet, self._look_at = nvml, set(range(count)), 0.0
        self.problem = None if count else "The NVIDIA driver reports no GPU: CPU slots are used."

    def _look(self, at: float) -> None:
        """Meet the GPUs, each index for itself: a lost one does not hide the others."""
        problems = []
        for index in sorted(self._unmet):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                card = Card(self._nvml, index, handle, retry_s=self._retry_s, whose=self._whose)
            except GpuTrouble as trouble:
                problems.append(f"GPU {index} does not answer ({trouble}): it is left out until it does.")
            except self._nvml.NVMLError as error:
                raise_for_driver(error)
                problems.append(f"GPU {index} does not answer ({type(error).__name__}): it is left out until it does.")
            else:
                self.cards[card.uuid] = card
                self._unmet.discard(index)
        self.problem, self._look_at = " ".join(problems) or None, at + self._retry_s
        self._watch_again()

    def _watch_again(self) -> None:
        """Other GPUs are well than before. The first watch has them before anything is read: nothing is missed from then on."""
        if self._watch:
            self._watch.renew()
        elif self._watch_xids and self.cards:
            self._watch = XidWatch(self._nvml, self._handles, self.xids)
            self._watch.start()

    def _read(self, card: Card, ts: int, at: float, thoroughly: bool) -> Sample:
        was_out = card.handle is None
        sample = card.read(ts, at=at, thoroughly=thoroughly)
        if was_out and card.handle is not None:
            self._watch_again()
        return sample

    def _stop(self, problem: str, at: float) -> None:
        """Shut the library down; the next start comes later each time."""
        self.problem, self._start_at = problem, at + min(LONGEST_BACK_OFF_S, 2.0**self._failures)
        self._failures += 1
        for card in self.cards.values():
            card.rest("stale", problem, until=self._start_at)
        if self._watch:
            self._watch.end()
            self._watch = None
        if self._nvml:
            with suppress(self._nvml.NVMLError):  # it says that it is down already
                self._nvml.nvmlShutdown()
            self._nvml = None

    def _handles(self) -> dict[str, Any]:
        return {uuid: card.handle for uuid, card in list(self.cards.items()) if card.handle is not None}


class XidWatch(threading.Thread):
    """Waits for XIDs in the background and puts each as (uuid, code) into the queue.

    It is registered when it is made. When other GPUs are well than before, the next set of events is registered before the
    one in use is emptied and let go: what happens in between is seen twice rather than missed.
    """

    def __init__(self, nvml: Any, handles: Callable[[], dict[str, Any]], found: "SimpleQueue[tuple[str, int]]") -> None:
        super().__init__(name="xid-watch", daemon=True)
        self._nvml = nvml
        self._handles = handles
        self._found = found
        self._renewed = threading.Event()
        self._ended = threading.Event()
        self._set: Any = None
        self._uuids: dict[int | None, str] = {}
        try:
            self._register()
        except nvml.NVMLError:
            self._renewed.set()  # the thread tries it again

    def renew(self) -> None:
        """Other GPUs are well than before."""
        self._renewed.set()

    def end(self) -> None:
        self._ended.set()
        self._renewed.set()
        self.join(timeout=1.5)  # longer than one wait; a wedged driver keeps it, and it dies with the process

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                self._watch()
            except self._nvml.NVMLError:
                # With a lost GPU in the set each wait fails at once. It cannot register again, so the next set is
                # without it; the pause keeps this from spinning.
                self._ended.wait(1.0)
                self._renewed.set()
        self._let_go(self._set)

    def _watch(self) -> None:
        if self._renewed.is_set():
            self._renewed.clear()
            self._renew()
        if self._uuids:
            self._take(self._set, self._uuids, 1000)
        else:
            self._renewed.wait(30.0)

    def _renew(self) -> None:
        old, uuids = self._set, self._uuids
        try:
            self._register()
        finally:
            if self._set is not old:
                self._drain(old, uuids)

    def _drain(self, old: Any, uuids: dict[int | None, str]) -> None:
        """What the old set still holds. One with a lost GPU in it says only that."""
        with suppress(self._nvml.NVMLError):
            while self._take(old, uuids, 0):
                pass
        self._let_go(old)

    def _register(self) -> None:
        """A new set with every GPU that is well."""
        events, uuids = self._nvml.nvmlEventSetCreate(), {}
        for uuid, handle in self._handles().items():
            try:
                self._nvml.nvmlDeviceRegisterEvents(handle, XID_EVENT, events)
            except self._nvml.NVMLError:
                continue  # lost, or not supported on this platform
            uuids[_address(handle)] = uuid
        self._set, self._uuids = events, uuids

    def _take(self, events: Any, uuids: dict[int | None, str], timeout_ms: int) -> bool:
        """Wait for one event; whether one came."""
        if events is None:
            return False
        try:
            event = self._nvml.nvmlEventSetWait_v2(events, timeout_ms)
        except self._nvml.NVMLError as error:
            if error.value != TIMEOUT:
                raise
            return False
        # By handle, as a lost GPU does not tell its UUID any more.
        if uuid := uuids.get(_address(event.device)):
            self._found.put((uuid, event.eventData))
        return True

    def _let_go(self, events: Any) -> None:
        if events is not None:
            with suppress(self._nvml.NVMLError):  # the library may be down already
                self._nvml.nvmlEventSetFree(events)


def inventory() -> Inventory:
    """The GPUs that answer now."""
    driver = Driver(retry_s=0.0, watch_xids=False)
    driver.read(0, at=0.0, thoroughly=False)
    return Inventory(tuple(card.gpu for card in driver.cards.values()), driver.problem, driver.replaced)


def checkup() -> dict[str, Any]:
    """Everything about the GPUs that answer now that may be wrong with them."""
    driver = Driver(retry_s=0.0, watch_xids=False)
    driver.read(0, at=0.0, thoroughly=True)
    cards = [card.details() for card in driver.cards.values()]
    return {"gpus": cards, "problem": driver.problem, "replaced": driver.replaced}


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value
