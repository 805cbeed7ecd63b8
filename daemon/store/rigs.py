"""Rigs: their beats, lives and pauses, the GPUs out of service, and what the rigs of one queue agree on."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from redis.client import Pipeline

from daemon.store.keys import (
    BEATS,
    PAUSED,
    PAUSED_SINCE,
    QUARANTINE,
    QUEUE,
    RIGS,
    beat_key,
    epoch_key,
    inputs_key,
    pauses_key,
)
from daemon.store.records import Records
from daemon.store.wire import chunks, parsed, redis_now, text, texts

BEAT_TTL_S = 15
PAUSES_KEPT = 1_000
#: A slot or None for the whole rig, from when to when; None: it lasts.
Pause = tuple[str | None, float, float | None]


class Rigs(Records):
    """Verbs about rigs and their slots."""

    def pause(self, rig: str, slot: str | None = None) -> None:
        """No new job starts on the rig, or on one of its slots; kept over restarts."""
        self._set_paused(rig, slot, True)

    def resume(self, rig: str, slot: str | None = None) -> None:
        """Take back a pause."""
        self._set_paused(rig, slot, False)

    def paused(self) -> frozenset[str]:
        """What is paused: `<rig>` and `<rig>:<slot>`."""
        return frozenset(texts(self.redis.smembers(PAUSED)))

    def _set_paused(self, rig: str, slot: str | None, paused: bool) -> None:
        name = f"{rig}:{slot}" if slot else rig

        def body(pipe: Pipeline) -> None:
            since, now = pipe.hget(PAUSED_SINCE, name), redis_now(pipe)
            pipe.multi()
            if paused:
                pipe.sadd(PAUSED, name)
                pipe.hsetnx(PAUSED_SINCE, name, repr(now))
            else:
                pipe.srem(PAUSED, name)
                pipe.hdel(PAUSED_SINCE, name)
                if since is not None:
                    pipe.rpush(pauses_key(rig), json.dumps([slot, float(since), now]))
                    pipe.ltrim(pauses_key(rig), -PAUSES_KEPT, -1)
            self._tell(pipe, "rig", "", {"rig": rig, "slot": slot, "paused": paused})

        self._transaction(body, PAUSED, PAUSED_SINCE)

    def pauses(self, rig: str) -> list[Pause]:
        """The pauses by hand of this rig and its slots, those that last at the end."""
        ended = [tuple(json.loads(record)) for record in self.redis.lrange(pauses_key(rig), 0, -1)]
        lasting = {text(name): float(at) for name, at in self.redis.hgetall(PAUSED_SINCE).items()}
        mine = [
            (name.removeprefix(rig).removeprefix(":") or None, at, None)
            for name, at in lasting.items()
            if name == rig or name.startswith(f"{rig}:")
        ]
        return cast(list[Pause], [*ended, *mine])

    def quarantines(self, rig: str) -> dict[str, dict[str, Any]]:
        """By slot: the records of this rig's GPUs that were ever out of service for a fault."""
        found = {text(name): json.loads(record) for name, record in self.redis.hgetall(QUARANTINE).items()}
        return {name.removeprefix(f"{rig}:"): record for name, record in found.items() if name.startswith(f"{rig}:")}

    def change_quarantine(
        self, rig: str, slot: str, step: Callable[[dict[str, Any] | None], dict[str, Any] | None]
    ) -> dict[str, Any] | None:
        """Carry out one pure step of a GPU's record; what it returns unchanged is not written. Kept over restarts."""
        name = f"{rig}:{slot}"

        def body(pipe: Pipeline) -> dict[str, Any] | None:
            before = parsed(pipe.hget(QUARANTINE, name))
            after = step(before)
            pipe.multi()
            if after is not None and after != before:
                pipe.hset(QUARANTINE, name, json.dumps(after))
                self._tell(pipe, "rig", "", {"rig": rig, "slot": slot})
            return after

        return cast(dict[str, Any] | None, self._transaction(body, QUARANTINE))

    def new_epoch(self, rig: str) -> int:
        """A new life of the rig's daemon begins: offers of the one before are refused from now on."""
        return int(self.redis.incr(epoch_key(rig)))

    def describe_rig(self, rig: str, facts: Mapping[str, Any]) -> None:
        """Publish the rig's slots and settings."""
        with self.redis.pipeline() as pipe:
            pipe.hset(RIGS, rig, json.dumps(facts))
            self._tell(pipe, "rig", "", {"rig": rig})
            pipe.execute()

    def rigs(self) -> dict[str, dict[str, Any]]:
        """Every rig that ever published itself."""
        found = self.redis.hgetall(RIGS)
        return {text(rig): json.loads(facts) for rig, facts in sorted(found.items())}

    def forget_rig(self, rig: str) -> None:
        """A rig that will not come back: its name, its pauses and what is known of its uploads."""
        paused = [name for name in self.paused() if name == rig or name.startswith(f"{rig}:")]
        with self.redis.pipeline() as pipe:
            pipe.hdel(RIGS, rig)
            pipe.zrem(BEATS, rig)
            pipe.delete(beat_key(rig), inputs_key(rig), pauses_key(rig))
            if paused:
                pipe.srem(PAUSED, *paused)
                pipe.hdel(PAUSED_SINCE, *paused)
            if held := [f"{rig}:{slot}" for slot in self.quarantines(rig)]:
                pipe.hdel(QUARANTINE, *held)
            self._tell(pipe, "rig", "", {"rig": rig})
            pipe.execute()

    def beat(self, rig: str, facts: Mapping[str, Any]) -> None:
        """The daemon lives."""
        seconds, micros = self.redis.time()
        with self.redis.pipeline() as pipe:
            pipe.set(beat_key(rig), json.dumps(facts), ex=BEAT_TTL_S)
            pipe.zadd(BEATS, {rig: int(seconds) + int(micros) / 1e6})
            pipe.execute()

    def last_beat(self, rig: str) -> dict[str, Any] | None:
        """The daemon's last beat; None when it is older than `BEAT_TTL_S`."""
        return parsed(self.redis.get(beat_key(rig)))

    def beats(self, rigs: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The last beat of each of these rigs; without those that are silent for longer than `BEAT_TTL_S`."""
        names = list(rigs)
        found = self.redis.mget([beat_key(rig) for rig in names]) if names else []
        return {rig: json.loads(beat) for rig, beat in zip(names, found, strict=True) if beat is not None}

    def silences(self) -> dict[str, float]:
        """Seconds since the last beat of every rig, by the clock of Redis."""
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zrange(BEATS, 0, -1, withscores=True)
            (seconds, micros), beats = pipe.execute()
        now = int(seconds) + int(micros) / 1e6
        return {text(rig): now - at for rig, at in beats}

    def queue_fact(self, name: str, first: str) -> str:
        """A fact of this queue. Whoever asks first sets it to `first`; everybody gets the same answer."""
        self.redis.hsetnx(QUEUE, name, first)
        return text(cast(bytes, self.redis.hget(QUEUE, name)))

    def set_queue_fact(self, name: str, value: str) -> None:
        """Change a fact of this queue."""
        self.redis.hset(QUEUE, name, value)

    def add_inputs(self, rig: str, digests: Iterable[str], *, anew: bool = False) -> None:
        """These uploads lie on the rig. `anew`: and no others."""
        found = list(digests)
        with self.redis.pipeline() as pipe:
            if anew:
                pipe.delete(inputs_key(rig))
            for chunk in chunks(found, 1_000):
                pipe.sadd(inputs_key(rig), *chunk)
            pipe.execute()

    def drop_input(self, rig: str, digest: str) -> None:
        """The upload does not lie there after all."""
        self.redis.srem(inputs_key(rig), digest)

    def rigs_with_input(self, digest: str, rigs: Iterable[str]) -> list[str]:
        """Those of these rigs that are said to have the upload."""
        names = list(rigs)
        with self.redis.pipeline(transaction=False) as pipe:
            for rig in names:
                pipe.sismember(inputs_key(rig), digest)
            return [rig for rig, there in zip(names, pipe.execute(), strict=True) if there]
