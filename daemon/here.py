"""What waiting jobs this rig can take: those whose model, data, program and checkpoints are here or can be brought here.

Matters only where several rigs share a queue. With one rig, admission has checked all of it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from daemon.admission import missing_here
from daemon.peers import is_stopped, living_peers, silent_after_s
from daemon.settings import Settings
from daemon.store import Store, UnknownJob
from jobs.model import Attempt, Cause, Job
from jobs.spec import FILE_FIELDS

#: How long a verdict holds: a model may be copied here, or an upload come, at any time.
GOOD_FOR_S, BAD_FOR_S = 30.0, 5.0
INFINITE_S = float("inf")
#: Names of jobs that wait no longer are forgotten beyond this.
KEPT_NAMES = 1_000
#: Fields of documents that name something on a rig.
NAMED = ("model", "adapter", "adapters", "engine", "cwd", "argv", "secrets", *FILE_FIELDS)


@dataclass(frozen=True)
class Rigs:
    """The other rigs as the planner sees them."""

    #: Why jobs cannot run on this rig.
    not_here: Mapping[str, str] = field(default_factory=dict)
    #: Rigs that are silent: what they left is anybody's to settle.
    away: frozenset[str] = frozenset()
    #: Slots of each other rig that lives.
    others: Mapping[str, int] = field(default_factory=dict)


ALONE = Rigs()


class Here:
    """This rig among the others. Verdicts about files are kept for a while: they cost system calls."""

    def __init__(self, store: Store):
        self._store = store
        #: What each waiting job names.
        self._names: dict[str, tuple[Mapping[str, object] | None, tuple[str, ...]]] = {}
        #: By that, for a sweep names the same a thousand times: until when it holds, and the verdict.
        self._verdicts: dict[tuple[str, ...], tuple[float, str | None]] = {}

    def look(self, waiting: Collection[Job], unfinished: Collection[str], settings: Settings, now: float) -> Rigs:
        """Where each waiting job may run, by what is known at this moment."""
        if settings.redis_url is None:
            return ALONE
        records, silences = self._store.rigs(), self._store.silences()
        living = living_peers(self._store, settings)
        stopped = {rig for rig, record in records.items() if is_stopped(record)}
        limit_s = silent_after_s(settings)
        others = {rig: len(records.get(rig, {}).get("slots", ())) for rig in living}
        known = {*records, *silences} - {settings.rig}
        away = frozenset(rig for rig in known if silences.get(rig, INFINITE_S) > limit_s)
        if not known:
            return ALONE
        reasons: dict[str, str] = {}
        for job in waiting:
            reason = self._bound_elsewhere(job, settings, known, silences, stopped)
            if reason is None and not any(parent in unfinished for parent in job.needs_ends_of):
                reason = self._lacks(job, settings, living, now)
            if reason:
                reasons[job.id] = reason
        if len(self._names) > 2 * len(waiting) + KEPT_NAMES:
            self._names.clear()
        self._verdicts = {named: verdict for named, verdict in list(self._verdicts.items()) if now < verdict[0]}
        return Rigs(reasons, away, others)

    def _bound_elsewhere(
        self, job: Job, settings: Settings, known: set[str], silences: Mapping[str, float], stopped: set[str]
    ) -> str | None:
        wanted = job.spec.get("rig")
        if wanted and wanted != settings.rig:
            return f"is for rig {wanted} only" + (", which was stopped" if wanted in stopped else "")
        # a preflight leaves nothing to go on from
        last = next((run for run in reversed(job.attempts) if not run.preflight), None)
        if last is None or settings.shared_runs:
            return None
        if last.rig == settings.rig or last.rig not in known or _may_move(last):
            return None
        begun = f"its checkpoints are on rig {last.rig}"
        if last.rig in stopped:
            forget = f"anew, after `overnight rigs forget {last.rig}`"
            return f"{begun}, which was stopped; it goes on when {last.rig} is back (or {forget})"
        silent_s = silences.get(last.rig, INFINITE_S)
        if silent_s > settings.rig_away_s:
            return None
        if silent_s > silent_after_s(settings):
            return f"{begun}, which is away; it starts anew on another rig after {settings.rig_away_s:g} s"
        return f"{begun}: it goes on there"

    def _lacks(self, job: Job, settings: Settings, living: Collection[str], now: float) -> str | None:
        named = self._named_by(job)
        until, known = self._verdicts.get(named, (0.0, None))
        if now < until:
            return known
        lack = missing_here(
            job.effective_spec,
            settings,
            find_job=self._find,
            uploaded_elsewhere=lambda digest: bool(self._store.rigs_with_input(digest, living)),
        )
        reason = f"cannot run on rig {settings.rig}: {lack}" if lack else None
        self._verdicts[named] = (now + (BAD_FOR_S if reason else GOOD_FOR_S), reason)
        return reason

    def _named_by(self, job: Job) -> tuple[str, ...]:
        spec, named = self._names.get(job.id, (None, ()))
        if spec is not job.spec:  # new, or edited since
            named = (job.kind, *(str(job.spec.get(name)) for name in NAMED))
            self._names[job.id] = job.spec, named
        return named

    def _find(self, job_id: str) -> Job | None:
        try:
            return self._store.get(job_id)
        except UnknownJob:
            return None


def _may_move(last: Attempt) -> bool:
    """A broken card is no place to go back to."""
    return last.cause is Cause.GPU_FAULT
