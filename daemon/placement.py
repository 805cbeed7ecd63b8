"""Which slots a job takes, and which ones are kept until enough of them are free. Pure: slots and times, not jobs and rules.

The board is filled in the order of the queue. A job that fits takes its slots. One that does not keeps those that it will have
soonest; jobs behind it may use them only when they are gone by then, or give way at once (EASY backfilling, with a
reservation for every job that still finds slots to keep).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from jobs.estimate import VRAM_RESERVE_BYTES


class Need(NamedTuple):
    """What a job asks of the board."""

    job: str
    gpus: int = 1
    #: On each GPU; 0 when nobody knows.
    vram_bytes: int = 0
    #: It is gone after so many seconds for certain enough; inf when nobody knows.
    lasts_s: float = math.inf
    #: Backlog: asked to leave, it is gone after so many seconds at the latest; inf: nobody may ask.
    yields_in_s: float = math.inf

    @property
    def gives_way(self) -> bool:
        return self.yields_in_s < math.inf


@dataclass(eq=False)
class Place:
    """One usable slot on the board. Times are seconds from now; inf: nobody knows."""

    slot: str
    index: int
    model: str = ""
    memory_bytes: int = 0
    #: What a job may use of it; 0: as much as it wants.
    room_bytes: int = 0
    occupant: str | None = None
    free_in_s: float = 0.0
    #: When it would be free if its occupant were asked to leave now.
    asked_free_in_s: float = math.inf
    #: What is lost by asking.
    loss: float = 0.0
    #: What a start here adds to the rig's power, or its occupant's end gives back.
    power_w: float = 0.0
    keeper: Need | None = None
    #: When its keeper has all that it needs; inf: nobody knows, it may be any moment.
    needed_in_s: float = math.inf

    def open_to(self, need: Need) -> bool:
        """Whether the job that it is kept for, if any, can spare it."""
        if self.keeper is None or need.lasts_s <= self.needed_in_s < math.inf:
            return True
        return not self.keeper.gives_way and need.gives_way and need.yields_in_s <= self.needed_in_s


@dataclass(frozen=True)
class Kept:
    """The slots that a job keeps, when it will have them all, and who must leave them for it now."""

    places: tuple[Place, ...]
    at_s: float
    leave: tuple[str, ...] = ()


@dataclass
class Board:
    """All usable slots, while one plan is made."""

    places: Sequence[Place]
    #: Whoever leaves within so many seconds is not asked to.
    soon_s: float = 45.0
    #: Power that may still be given out.
    watts_left: float = math.inf
    #: How much of it the last job that did not start lacked.
    lacks_w: float = 0.0
    #: The shortest job of each shape that found nothing: the board only gets fuller.
    _refused: dict[tuple[int, int, bool], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._free = [place for place in self.places if place.free_in_s <= 0]
        self._unkept = list(self.places)
        #: Nobody who lasts longer finds a gap, but backlog; inf while there is a slot that nobody keeps.
        self.gap_s = math.inf

    @property
    def full(self) -> bool:
        """Whether nobody behind can take or keep anything."""
        return not self._free and not self._unkept

    def refuses(self, need: Need) -> bool:
        """Whether it is known already that it can neither take nor keep anything."""
        if len(self._free) < need.gpus and len(self._unkept) < need.gpus:
            return True
        return bool(self._refused) and need.lasts_s >= self._refused.get(_shape(need), math.nan)

    def take(self, need: Need) -> tuple[Place, ...]:
        """The slots on which it starts now; none when they are too few."""
        fitting = [place for place in self._free if place.open_to(need) and fits(need.vram_bytes, place.room_bytes)]
        if len(fitting) < need.gpus:
            return ()
        chosen = _alike(sorted(fitting, key=_smallest_first), need.gpus)
        power_w = sum(place.power_w for place in chosen)
        if power_w > self.watts_left:
            self.lacks_w = power_w - self.watts_left
            return ()
        self.watts_left -= power_w
        for place in chosen:
            place.occupant, place.free_in_s = need.job, max(1.0, need.lasts_s)
            self._free.remove(place)
        self._measure_gap()
        return chosen

    def keep(self, need: Need) -> Kept | None:
        """Keep the slots that it will have soonest; None when too few are left that nobody keeps."""
        left = [place for place in self._unkept if fits(need.vram_bytes, place.room_bytes)]
        if len(left) < need.gpus:
            shape = _shape(need)
            self._refused[shape] = min(need.lasts_s, self._refused.get(shape, math.inf))
            return None
        when = {place.slot: self._free_for(place, need) for place in left}
        at_s = sorted(when.values())[need.gpus - 1]
        in_time = [place for place in left if when[place.slot] <= at_s]
        chosen = _soonest(in_time, need.gpus, max(at_s, self.soon_s))
        for place in chosen:
            place.keeper, place.needed_in_s = need, at_s
            self._unkept.remove(place)
        self._measure_gap()
        asked = (p.occupant for p in chosen if p.occupant and p.free_in_s > self.soon_s and at_s <= self.soon_s)
        return Kept(chosen, at_s, tuple(dict.fromkeys(asked)))

    def power_from(self) -> tuple[str, ...]:
        """Who must leave so that there is power for the last job; nobody where that would not do, or comes by itself."""
        lacks_w = self.lacks_w - sum(p.power_w for p in self.places if 0 < p.free_in_s <= self.soon_s)
        asked: dict[str, None] = {}
        for place in sorted(self.places, key=lambda p: (p.loss, p.index)):
            if lacks_w > 0 and place.occupant and place.asked_free_in_s <= self.soon_s < place.free_in_s:
                asked[place.occupant] = None
                lacks_w -= place.power_w
        return tuple(asked) if lacks_w <= 0 else ()

    def _measure_gap(self) -> None:
        if not self._unkept:
            self.gap_s = max((p.needed_in_s for p in self._free if p.needed_in_s < math.inf), default=0.0)

    def _free_for(self, place: Place, need: Need) -> float:
        if need.gives_way or place.free_in_s <= self.soon_s:
            return place.free_in_s
        return min(place.free_in_s, place.asked_free_in_s)


def _shape(need: Need) -> tuple[int, int, bool]:
    """Needs of one shape differ in how long they last only."""
    return need.gpus, need.vram_bytes, need.gives_way


def fits(vram_bytes: int, room_bytes: int) -> bool:
    """Whether a need fits with the reserve beside it; 0 stands for what nobody knows, and fits."""
    return not vram_bytes or not room_bytes or vram_bytes + VRAM_RESERVE_BYTES <= room_bytes


def _soonest(in_time: Sequence[Place], count: int, limit_s: float) -> tuple[Place, ...]:
    """Those that come free by themselves, before those whose jobs would have to leave: the fewest, with the least lost."""
    by_itself = [place for place in in_time if place.free_in_s <= limit_s]
    if len(by_itself) >= count:
        # the last ones to come free: the others may be used meanwhile
        return _alike(sorted(by_itself, key=lambda place: (-_known(place.free_in_s), *_smallest_first(place))), count)
    chosen = by_itself
    asked = sorted((p for p in in_time if p.free_in_s > limit_s), key=lambda p: (p.occupant or "", p.index))
    jobs = [list(places) for _, places in groupby(asked, key=lambda place: place.occupant)]
    while (missing := count - len(chosen)) > 0:
        best = min(jobs, key=lambda places: (-min(len(places), missing), places[0].loss, places[0].index))
        jobs.remove(best)
        chosen = chosen + best[:missing]
    return tuple(chosen)


def _alike(ordered: Sequence[Place], count: int) -> tuple[Place, ...]:
    """The first of them; for several, cards of one model where there are enough."""
    if count > 1:
        models: dict[tuple[int, str], list[Place]] = {}
        for place in ordered:
            models.setdefault((place.memory_bytes, place.model), []).append(place)
        if enough := [group for group in models.values() if len(group) >= count]:
            ordered = enough[0]
    return tuple(ordered[:count])


def _smallest_first(place: Place) -> tuple[int, bool, int]:
    return place.memory_bytes, place.keeper is not None, place.index


def _known(seconds: float) -> float:
    """For sorting by time, what is not known last."""
    return seconds if math.isfinite(seconds) else -1.0
