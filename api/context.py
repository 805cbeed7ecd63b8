"""What every route works with. Made once, with the application."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

from fastapi import Depends, Request

from api.auth import ASKED_BY_RIG, Keys, Throttle
from api.elsewhere import Elsewhere, HeldElsewhere
from api.hub import Hub
from api.nights import Nights
from api.sweep_views import Tables
from daemon.facts import Ledger
from daemon.plan import Facts
from daemon.preflights import is_wanted
from daemon.rig import Slot
from daemon.settings import Settings
from daemon.store import Store, new_job
from daemon.supervisor import WORKER
from jobs.estimate import Outlook
from jobs.model import Job
from jobs.spec import Spec


@dataclass(frozen=True)
class Context:
    """The rig as the API sees it."""

    settings: Settings
    store: Store
    ledger: Ledger
    hub: Hub
    keys: Keys
    throttle: Throttle
    now: Callable[[], float]
    elsewhere: Elsewhere
    tables: Tables
    nights: Nights
    #: Another rig asks: the answer is about this one only.
    asked_by_rig: bool = False

    def learned(self, spec: Spec) -> int | None:
        """Memory that earlier runs of the same shape have needed on one GPU."""
        return self.ledger.history.peak_vram_bytes(new_job(spec, 1, self.now()))

    def outlook(self, spec: Spec, outlook: Outlook) -> Outlook:
        """What admission has found, and whether the job is to be checked first."""
        cards = [slot for record in self.store.rigs().values() for slot in record.get("slots", ())]
        wanted = is_wanted(
            new_job(spec, 1, self.now(), outlook),
            self.ledger.history,
            over_s=self.settings.preflight_over_s,
            on_gpu=any(Slot.from_json(card).is_gpu for card in cards),
        )
        return replace(outlook, preflight=wanted)

    def require_here(self, job: Job) -> None:
        """Return when the job's run folder is here. Raises HeldElsewhere: the call is handed on to the rig that has it."""
        rig = None if self.asked_by_rig else self.elsewhere.holder(job)
        if rig is not None:
            raise HeldElsewhere(job.id, rig)

    def facts(self) -> Facts:
        """The planner's facts of this moment."""
        ready = ready_slots(self.store.last_beat(self.settings.rig))
        return self.ledger.facts(self.now(), self.settings, ready=ready)


def ready_slots(beat: Mapping[str, Any] | None) -> list[str] | None:
    """Slots whose worker lives, as the daemon's last beat says; None when it does not say."""
    processes = beat.get("processes") if beat else None
    if not processes:
        return None
    return [
        name.removeprefix(WORKER) for name, state in processes.items() if name.startswith(WORKER) and state["alive"]
    ]


def context(request: Request) -> Context:
    """What every route works with."""
    known = cast(Context, request.app.state.context)
    return replace(known, asked_by_rig=True) if request.scope.get(ASKED_BY_RIG) else known


#: For routes: `def list_jobs(rig: Rig)`.
Rig = Annotated[Context, Depends(context)]
