"""Four mornings to take pictures of: a good night, a bad one, an empty rig, and one whose sampler died.

The jobs and their figures are made up; everything that tells of them is the real thing: the store, the run folders, the telemetry, the API.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from browser.filled_rig import HOUR_S, MINUTE_S, FilledRig, curve, finetune, rig_at, zone_where_it_is

from daemon.rig import Slot
from daemon.settings import Settings
from jobs.model import Cause, End, Job
from jobs.spec import parse
from jobs.sweep import Goal, SweepFacts

#: The pictures are taken at this hour of the rig's own day.
MORNING_HOUR = 7
#: Open for longer than the hour in which the pictures are taken.
EVENING = "22:00-09:00"
#: Since when the dead sampler is dead.
SILENT_MIN = 14
HELD_OUT = "sha256:" + "b7" * 32
QUESTIONS = "sha256:" + "a1" * 32
OOM_LINE = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.31 GiB. GPU 0 has a total capacity of 23.57 GiB of which 1.02 GiB is free."


def morning_at(home: Path) -> Settings:
    """A rig where it is early in the morning now."""
    return rig_at(home).model_copy(update={"timezone": zone_where_it_is(MORNING_HOUR), "window": EVENING})


class Night:
    """Fills a rig's slots from its window's opening on, one job after the other."""

    def __init__(self, rig: FilledRig):
        self.rig = rig
        opens = rig.settings.windows.opens_at(rig.now - 12 * HOUR_S, rig.settings.zone)
        assert opens is not None and opens < rig.now
        self.since = opens
        self.free_at = {slot.id: opens + 8.0 for slot in rig.slots}
        self.spans: dict[str, list[tuple[float, float]]] = {slot.id: [] for slot in rig.slots}
        rig.begin()

    def submit(self, document: Mapping[str, Any], minutes_before: float = 70) -> Job:
        return self.rig.submit(document, self.since - minutes_before * MINUTE_S)

    def sweep(self, name: str, documents: Sequence[Mapping[str, Any]], axis: str) -> list[Job]:
        """One job for each document, which differ in one field."""
        head, _, tail = axis.partition(".")
        points = [{axis: one[head][tail] if tail else one[head]} for one in documents]
        facts = SweepFacts(name=name, method="grid", axes=(axis,), base=points[0], goal=Goal(minimize="eval_loss"))
        at = self.since - 80 * MINUTE_S
        jobs, _ = self.rig.store.submit([parse(one) for one in documents], now=at, sweep=facts, points=points)
        return list(jobs)

    def run(self, job: Job, minutes: float, slot: Slot, *, log: str = "", **outcome: Any) -> Job:
        """On the slot for so long, from where the last one ended."""
        began = self.free_at[slot.id]
        ended = began + minutes * MINUTE_S
        assert ended < self.rig.now, "the night is not that long"
        job = self.rig.run(job, began, [slot])
        folder = self.rig.folder(job)
        loss = outcome.get("metrics", {}).get("eval_loss")
        if loss is not None:
            curve(folder, 480, end=loss - 0.05, eval_every=80, began=began)
            log = "\n".join(
                f"step {step:3d}/480   loss {loss - 0.05 + 1.15 * math.exp(-step / 110):.4f}"
                for step in range(300, 481)
            )
        folder.log.write_text(f"{log or 'Done.'}\n")
        self._taken(slot, began, ended)
        return self.rig.finish(job, ended, **outcome)

    def succeed(self, job: Job, minutes: float, slot: Slot, **metrics: float) -> Job:
        return self.run(job, minutes, slot, end=End.SUCCEEDED, metrics=metrics)

    def fail(self, job: Job, minutes: float, slot: Slot, cause: Cause, message: str, hint: str = "", *, log: str = "", **more: Any) -> Job:  # fmt: skip
        return self.run(job, minutes, slot, log=log, end=End.FAILED, cause=cause, message=message, hint=hint, **more)

    def go_on(self, job: Job, slot: Slot, step: int, total: int, minutes_left: float, **told: Any) -> Job:
        """It runs until now, and on."""
        job = self.rig.run(job, self.free_at[slot.id], [slot])
        if "loss" in told:
            curve(self.rig.folder(job), step, end=told["loss"] - 0.02, eval_every=200, began=self.free_at[slot.id])
        self.rig.folder(job).log.write_text(
            "".join(f"step {n:4d}/{total}\n" for n in range(max(1, step - 150), step + 1))
        )
        self._taken(slot, self.free_at[slot.id], self.rig.now)
        self.rig.busy = {**self.rig.busy, slot.id: 0.97 - 0.09 * slot.index}
        return self.rig.progress(job, step, total, eta_s=minutes_left * MINUTE_S, **told)

    def _taken(self, slot: Slot, began: float, ended: float) -> None:
        self.spans[slot.id].append((began, ended))
        self.free_at[slot.id] = ended + 9.0

    def remember(self) -> None:
        """The telemetry of these hours."""
        chance = Random(0)

        def load(slot: Slot, ts: float) -> float:
            if not any(began <= ts < ended for began, ended in self.spans[slot.id]):
                return 0.0
            saves = slot.index == 0 and int(ts) % 290 < 9
            return 0.955 + chance.gauss(0, 0.02) - (0.5 if saves else 0.09 * slot.index) + 0.02 * math.sin(ts / 40)

        self.rig.record(self.since - 10 * MINUTE_S, self.rig.sampler_died_at or self.rig.now, load)
        self.rig.live(time.time())


def tuned(name: str, **fields: Any) -> dict[str, Any]:
    return finetune(name, eval_data=HELD_OUT, eval_steps=80, **fields)


def a_good_night(rig: FilledRig) -> dict[str, Job]:
    """All is done, the best is better than the baseline, nothing waits."""
    night = Night(rig)
    gpu0, gpu1 = rig.slots
    base = night.submit(
        tuned("support-bot lora-r8 lr=1e-4", learning_rate=1e-4, lora={"r": 8}, tags=["support-bot", "baseline"])
    )
    sweep = night.sweep(
        "support-bot ranks",
        [tuned(f"support-bot lora-r{r} lr=2e-4", lora={"r": r}) for r in (16, 32, 64, 128)],
        "lora.r",
    )
    answers = night.submit(
        {
            "kind": "generate",
            "name": "answers for the held-out tickets",
            "model": f"job:{sweep[1].id}",
            "data": QUESTIONS,
            "tags": ["support-bot"],
        }
    )
    convert = night.submit(
        {"kind": "command", "name": "convert to GGUF", "argv": ["python", "convert.py", "--outtype", "q8_0"]}
    )
    embed = night.submit(
        {"kind": "command", "name": "embed the archive", "argv": ["python", "embed.py"], "priority": "backlog"}
    )
    night.succeed(base, 94, gpu0, eval_loss=1.3418, train_loss=1.2901, steps=480)
    night.succeed(sweep[0], 101, gpu1, eval_loss=1.1874, train_loss=1.1302, steps=480)
    made = {
        "best": night.succeed(sweep[1], 118, gpu0, eval_loss=1.1083, train_loss=1.0441, steps=480, tokens_per_s=3312.4)
    }
    night.succeed(sweep[2], 127, gpu1, eval_loss=1.1167, train_loss=1.0219, steps=480)
    night.succeed(answers, 46, gpu0, rows=1200, tokens_per_s=1843.7)
    night.succeed(sweep[3], 139, gpu1, eval_loss=1.1492, train_loss=0.9874, steps=480)
    night.succeed(convert, 5, gpu0)
    night.succeed(embed, 208, gpu0)
    night.remember()
    return made


def a_bad_night(rig: FilledRig) -> dict[str, Job]:
    """Two sweeps failed, each for one reason; a command has a mistake; one failure mended itself; the rest goes on."""
    night = Night(rig)
    gpu0, gpu1 = rig.slots
    made: dict[str, Job] = {}
    base = night.submit(
        tuned("support-bot lora-r8 lr=1e-4", learning_rate=1e-4, lora={"r": 8}, tags=["support-bot", "baseline"])
    )
    long = night.sweep(
        "contexts of 8k",
        [
            tuned(f"contexts 8k lora-r{r}", lora={"r": r}, max_length=8192, per_device_train_batch_size=2)
            for r in (8, 16, 32, 64, 128, 256)
        ],
        "lora.r",
    )
    fast = night.sweep(
        "fast rates",
        [tuned(f"support-bot lr={rate:.0e}".replace("e-0", "e-"), learning_rate=rate) for rate in (7e-4, 1e-3, 2e-3)],
        "learning_rate",
    )
    convert = night.submit(
        {"kind": "command", "name": "convert to GGUF", "argv": ["python", "convert.py", "--outtype", "q8_0"]}
    )
    wide = night.submit(tuned("support-bot lora-r32 lr=2e-4"))
    mended = night.submit(tuned("manual, whole chapters", max_length=4096, per_device_train_batch_size=4))
    first = night.submit(tuned("support-bot lora-r64 lr=1e-4", learning_rate=1e-4, lora={"r": 64}, num_train_epochs=4))
    second = night.submit(
        {
            "kind": "generate",
            "name": "translate the manual",
            "model": "Qwen/Qwen3-4B-Instruct-2507",
            "data": "sha256:" + "c4" * 32,
            "batch_size": 16,
        }
    )
    night.submit(tuned("both cards: full manual", gpus=2, max_length=4096), 60)
    night.submit(tuned("support-bot lora-r16 lr=2e-4", lora={"r": 16}), 59)
    night.submit(
        {"kind": "generate", "name": "answers with lora-r64", "model": f"job:{first.id}", "data": QUESTIONS}, 58
    )
    night.submit(
        {"kind": "command", "name": "embed the archive", "argv": ["python", "embed.py"], "priority": "backlog"}, 57
    )

    night.succeed(base, 94, gpu0, eval_loss=1.3418, train_loss=1.2901, steps=480)
    for number, job in enumerate(long):
        oom = "The GPU's memory ran out with per_device_train_batch_size = 2."
        made["oom"] = night.fail(job, 4 + number % 3, gpu1, Cause.OOM_GPU, oom, log=f"step 1/480\n{OOM_LINE}")
    for number, job in enumerate(fast):
        made["nan"] = night.fail(
            job,
            13 + 4 * number,
            gpu1,
            Cause.NAN,
            f"The loss is not finite at step {[71, 52, 41][number]}, with half the learning rate, too.",
            "Start again with a much smaller learning rate, or look for broken rows.",
        )
    made["best"] = night.succeed(wide, 121, gpu0, eval_loss=1.2143, train_loss=1.1672, steps=480)
    tried = night.fail(
        mended,
        6,
        gpu1,
        Cause.OOM_GPU,
        "The GPU's memory ran out with per_device_train_batch_size = 4.",
        next_fields={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    )
    made["mended"] = night.succeed(tried, 204, gpu1, eval_loss=1.3017, train_loss=1.2764, steps=300)
    wrong = "convert.py: error: the following arguments are required: --outfile"
    made["command"] = night.fail(
        convert,
        3,
        gpu0,
        Cause.USER_ERROR,
        f"It exited with status 2: {wrong}",
        "The log has its last words.",
        log=f"usage: convert.py [-h] --outfile OUTFILE\n{wrong}",
    )
    made["running"] = night.go_on(first, gpu0, 1482, 2000, 95, loss=1.1934)
    made["second"] = night.go_on(second, gpu1, 3120, 4800, 52, phase="generating", tokens_per_s=1620.0)
    night.remember()
    return made


def an_empty_rig(rig: FilledRig) -> dict[str, Job]:
    """It was set up a moment ago."""
    rig.begin()
    rig.record(rig.now - 10 * MINUTE_S, rig.now, lambda slot, ts: 0.0)
    return {}


def a_dead_sampler(rig: FilledRig) -> dict[str, Job]:
    """The good night; but nobody measures any more."""
    rig.sampler_died_at = rig.now - SILENT_MIN * MINUTE_S
    return a_good_night(rig)


NIGHTS: Mapping[str, Callable[[FilledRig], dict[str, Job]]] = {
    "good": a_good_night,
    "bad": a_bad_night,
    "empty": an_empty_rig,
    "silent": a_dead_sampler,
}
