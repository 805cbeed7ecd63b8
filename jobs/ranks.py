"""What the processes of one attempt agree on, where it has one on each of several GPUs. They are numbered from 0.

Loads torch only when it joins. Whether a process is dead or hangs is not found out here: jobs.gang ends all of them when one
dies, and the watchdog of the worker when one hangs, long before these calls would give up.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar

T = TypeVar("T")

#: A rank may wait for the first one for as long as that reads rows, or writes a checkpoint.
PATIENCE = timedelta(days=7)
#: Descriptor of the socket that the first rank listens on: bound by jobs.gang, so that nobody else can take the port.
LISTENS = "OVERNIGHT_RANK_SOCKET"
#: What runs between the ranks of one machine stays on it.
LOOPBACK, LOOPBACK_DEVICE = "127.0.0.1", "lo"


@dataclass(frozen=True)
class Ranks:
    """One process, and how many there are. Every rank must make the same calls in the same order."""

    number: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """The first one alone writes what others read: progress, metrics, results."""
        return self.number == 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """This process, as jobs.gang has started it."""
        return cls(int(environment["RANK"]), int(environment["WORLD_SIZE"]))

    def decide(self, choose: Callable[[], T]) -> T:
        """What the first rank chooses; the others wait for it."""
        if self.count == 1:
            return choose()
        import torch.distributed as dist

        chosen: list[Any] = [choose() if self.is_first else None]
        dist.broadcast_object_list(chosen, src=0, device=_cpu())
        return chosen[0]  # type: ignore[no-any-return]

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return self._most(int(flag)) > 0

    def least(self, value: int) -> int:
        """The smallest value of all ranks."""
        return -self._most(-value)

    def meet(self) -> None:
        """Go on when all have come to this place."""
        self._most(0)

    def _most(self, value: int) -> int:
        if self.count == 1:
            return value
        import torch
        import torch.distributed as dist

        told = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return int(told.item())


#: An attempt with one process.
ALONE = Ranks()


def join(ranks: Ranks, environment: Mapping[str, str]) -> None:
    """Find the other ranks of this attempt."""
    import torch
    import torch.distributed as dist

    listens = int(environment[LISTENS]) if ranks.is_first else None
    store = dist.TCPStore(
        LOOPBACK, int(environment["MASTER_PORT"]), ranks.count, ranks.is_first, PATIENCE, master_listen_fd=listens
    )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        _without_unsupported_links()
    dist.init_process_group(backend, store=store, rank=ranks.number, world_size=ranks.count, timeout=PATIENCE)


def _without_unsupported_links() -> None:
    """On cards whose driver cannot let them talk directly, accelerate would refuse to start."""
    from accelerate.utils import check_cuda_p2p_ib_support

    if not check_cuda_p2p_ib_support():
        os.environ.setdefault("NCCL_P2P_DISABLE", "1")
        os.environ.setdefault("NCCL_IB_DISABLE", "1")


def _cpu() -> Any:
    import torch

    return torch.device("cpu")
