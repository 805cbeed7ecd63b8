"""A rig in the middle of its night, made with the store's own verbs, the sampler's own files and real run folders."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from daemon.recorder import Recorder
from daemon.rig import Slot
from daemon.samples import Identity, Sample, SlotNow, now_path, publish
from daemon.settings import Settings
from daemon.settle import keep_record
from daemon.store import Store
from jobs.model import Cause, End, Job, Outcome, Progress, Wish, WishKind
from jobs.rundir import RunDir, append_json_line, run_dir, write_json
from jobs.spec import parse

GPUS = (
    Slot("GPU-5f1c9a3e-0000-0000-0000-000000000000", "NVIDIA GeForce RTX 3090", 0, 24 << 30),
    Slot("GPU-8b27d041-0000-0000-0000-000000000001", "NVIDIA GeForce RTX 3090", 1, 24 << 30),
)
LIMIT_W, IDLE_W = 350, 28
MINUTE_S, HOUR_S = 60.0, 3600.0
SAVED_AT_ONCE = 300


@dataclass
class FilledRig:
    """One rig's settings and queue, with hands to move it on."""

    settings: Settings
    store: Store
    now: float
    slots: tuple[Slot, ...] = GPUS
    epoch: int = 0
    busy: Mapping[str, float] = field(default_factory=dict)
    #: From then on nobody measures; 0: the sampler lives.
    sampler_died_at: float = 0.0

    def begin(self) -> None:
        """What the daemon tells at its start."""
        self.epoch = self.store.new_epoch(self.settings.rig)
        facts = {"slots": [slot.to_json() for slot in self.slots], "problem": None, "settings": {}}
        self.store.describe_rig(self.settings.rig, facts)

        self.live(self.now)

    def live(self, now: float) -> None:
        """The daemon's and the sampler's latest word."""
        names = [*(f"worker {slot.id}" for slot in self.slots), "api", "sampler"]
        report = {name: {"alive": True, "deaths": 0, "last_exit": None} for name in names}
        if self.sampler_died_at:
            report["sampler"] = {"alive": False, "deaths": 3, "last_exit": -9}
        self.store.beat(self.settings.rig, {"at": now, "pid": os.getpid(), "processes": report})
        readings = {slot.id: asdict(_reading(slot, self.busy.get(slot.id, 0.0))) for slot in self.slots}
        value = {
            "at": self.sampler_died_at or now,
            "pid": os.getpid(),
            "source": "nvml",
            "problem": None,
            "slots": readings,
            "unsaved": {},
        }
        publish(now_path(self.settings.home), value)

    def record(self, start: float, end: float, load: Callable[[Slot, float], float]) -> None:
        """A sample of every second in between, as the sampler would have written it."""
        recorder = Recorder(self.settings.home)
        for slot in self.slots:
            recorder.know(Identity(slot.id, slot.name))
        energy_mj = dict.fromkeys((slot.id for slot in self.slots), 0)
        for count, ts in enumerate(range(int(start), int(end))):
            for slot in self.slots:
                util = min(1.0, max(0.0, load(slot, ts)))
                power_mw = round(1000 * (IDLE_W + util * 300 + 6 * math.sin(ts / 7)))
                energy_mj[slot.id] += power_mw
                mem_mib = 320 if util < 0.05 else 14_800 + 5_200 * slot.index + round(300 * math.sin(ts / 900))
                recorder.add(
                    slot.id,
                    Sample(
                        ts,
                        util=round(util * 100),
                        mem_mib=mem_mib,
                        temp_c=round(38 + 33 * util + 2 * math.sin(ts / 300)),
                        power_mw=power_mw,
                        limit_mw=LIMIT_W * 1000,
                        energy_mj=energy_mj[slot.id],
                        sm_mhz=1740,
                    ),
                )
            if count % SAVED_AT_ONCE == SAVED_AT_ONCE - 1:
                recorder.save(now=ts)
        recorder.save(now=end)
        recorder.close()

    # -- jobs -------------------------------------------------------------------------------------------------------------

    def submit(self, document: Mapping[str, Any], at: float) -> Job:
        [job], _ = self.store.submit([parse(document)], now=at)
        return job

    def run(self, job: Job, at: float, slots: Sequence[Slot]) -> Job:
        """Offer and claim. An empty list: on a slot of another rig's, as these are taken."""
        ids = tuple(slot.id for slot in slots) if slots else (f"cpu:{job.id}",)
        offered = self.store.offer(job.id, rig=self.settings.rig, slots=ids, epoch=self.epoch, now=at)
        return self.store.claim(job.id, fence=offered.fence, owner="w", now=at, lease_s=1e6)

    def progress(
        self, job: Job, step: int, total: int, *, phase: str = "training", eta_s: float | None = None, **metrics: float
    ) -> Job:
        told = Progress(phase=phase, step=step, total=total, eta_s=eta_s, metrics=metrics)
        return self.store.renew(job.id, fence=job.fence, progress=told, lease_s=1e6)

    def finish(self, job: Job, at: float, **outcome: Any) -> Job:
        """How it ended; usage as the sampler would have measured it."""
        usage = {"gpu_s": (at - job.attempts[-1].started_at) * len(job.slots), "energy_j": (at - job.attempts[-1].started_at) * 305.0 * len(job.slots), "peak_vram_bytes": 19 << 30}  # fmt: skip
        if outcome.get("end") is End.CANCELLED:
            usage = {}
        ended = self.store.finish(job.id, fence=job.fence, outcome=Outcome(usage=usage, **outcome), now=at)
        keep_record(run_dir(self.settings.runs, job.id), ended)
        return ended

    def cancel(self, job: Job, at: float) -> Job:
        """Its owner changes his mind."""
        return self.store.wish(job.id, Wish(kind=WishKind.CANCEL, reason="Its owner asked for it.", asked_at=at))

    def folder(self, job: Job) -> RunDir:
        """Its run folder, made."""
        folder = run_dir(self.settings.runs, job.id)
        folder.create()
        return folder


def zone_where_it_is(hour: int) -> str:
    """The name of a time zone in which this is the hour now: what a page shows must not depend on when the tests run."""
    ahead = (hour - datetime.now(UTC).hour + 12) % 24 - 12
    return f"Etc/GMT{-ahead:+d}"  # named the other way round: Etc/GMT-2 is two hours ahead


def rig_at(home: Path) -> Settings:
    """A rig before dawn: its window is open, and all that ran belongs to one night."""
    return Settings(home=home, rig="atlas", port=0, slots="auto", timezone=zone_where_it_is(5), window="20:00-13:00")


def _reading(slot: Slot, util: float) -> SlotNow:
    is_busy = util > 0.05
    return SlotNow(
        name=slot.name,
        index=slot.index,
        utilization_ratio=util,
        memory_used_bytes=((15_100 + 4_900 * slot.index) << 20) if is_busy else 320 << 20,
        memory_total_bytes=slot.memory_bytes,
        temperature_c=71 - 3 * slot.index if is_busy else 38,
        power_w=331.0 - 24 * slot.index if is_busy else float(IDLE_W),
        power_limit_w=float(LIMIT_W),
        fan_ratio=0.61 if is_busy else 0.0,
    )


def curve(
    folder: RunDir, steps: int, *, start: float = 2.31, end: float = 1.16, eval_every: int = 0, began: float = 0.0
) -> None:
    """A loss as it falls, with the noise that it has."""
    chance = Random(steps)
    for step in range(1, steps + 1):
        loss = end + (start - end) * math.exp(-step / 110) + chance.gauss(0, 0.045)
        line = {
            "step": step,
            "epoch": round(step / 500, 4),
            "loss": round(loss, 4),
            "learning_rate": 2e-4 * min(1.0, step / 30) * max(0.0, 1 - step / 2400),
            "grad_norm": round((0.5 + 0.5 * math.exp(-step / 60)) * chance.lognormvariate(0, 0.16), 4),
            "mean_token_accuracy": round(0.74 - 0.21 * math.exp(-step / 140) + chance.gauss(0, 0.008), 4),
            "time": began + step,
        }
        append_json_line(folder.metrics, line)
        if eval_every and step % eval_every == 0:
            held_out = end + 0.07 + (start - end) * math.exp(-step / 130)
            append_json_line(folder.metrics, {"step": step, "eval_loss": round(held_out, 4), "time": began + step})


def finetune(name: str, **fields: Any) -> dict[str, Any]:
    """A document as somebody with two 3090s would write it."""
    return {
        "kind": "finetune",
        "name": name,
        "model": "Qwen/Qwen3-1.7B",
        "data": "sha256:" + "3f" * 32,
        "learning_rate": 2e-4,
        "max_length": 2048,
        "lora": {"r": 32},
        "tags": ["support-bot"],
        **fields,
    }


def a_night(rig: FilledRig, *, whole: bool = False) -> dict[str, Job]:
    """Jobs of every fate. `whole`: with the telemetry of all its hours, for pictures."""
    now, (gpu0, gpu1) = rig.now, rig.slots
    evening = now - 7.2 * HOUR_S
    rig.begin()
    made: dict[str, Job] = {}

    def ended(document: Mapping[str, Any], began: float, stopped: float, slot: Sequence[Slot], **outcome: Any) -> Job:
        job = rig.run(rig.submit(document, evening - 12 * MINUTE_S), began, slot)
        return rig.finish(job, stopped, **outcome)

    first = evening
    made["best"] = ended(finetune("support-bot lora-r32 lr=2e-4"), first, first + 96 * MINUTE_S, [gpu0], end=End.SUCCEEDED, metrics={"eval_loss": 1.2143, "train_loss": 1.1672, "first_loss": 2.3098, "steps": 480, "rows": 3412, "tokens": 2_618_440, "tokens_per_s": 3312.4})  # fmt: skip
    made["nan"] = ended(finetune("support-bot lora-r32 lr=1e-3", learning_rate=1e-3), first, first + 14 * MINUTE_S, [gpu1], end=End.FAILED, cause=Cause.NAN, message="The training went astray again with learning rate 0.0005: the loss is not finite.", hint="Look at the data for broken rows, or start again with a much smaller learning rate.")  # fmt: skip
    made["generated"] = ended({"kind": "generate", "name": "answers for the held-out tickets", "model": f"job:{made['best'].id}", "data": "sha256:" + "a1" * 32, "max_new_tokens": 512, "tags": ["support-bot"]}, first + 97 * MINUTE_S, first + 131 * MINUTE_S, [gpu0], end=End.SUCCEEDED, metrics={"rows": 1200, "tokens_per_s": 1843.7})  # fmt: skip
    oom = rig.run(rig.submit(finetune("long contexts 8k", max_length=8192, per_device_train_batch_size=2), evening - 11 * MINUTE_S), first + 15 * MINUTE_S, [gpu1])  # fmt: skip
    oom = rig.finish(oom, first + 19 * MINUTE_S, end=End.FAILED, cause=Cause.OOM_GPU, message="The GPU's memory ran out with per_device_train_batch_size = 2.", hint="It is tried again with 1 and the same effective batch.", next_fields={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8})  # fmt: skip
    oom = rig.run(oom, first + 19 * MINUTE_S, [gpu1])
    made["mended"] = rig.finish(oom, first + 228 * MINUTE_S, end=End.SUCCEEDED, metrics={"eval_loss": 1.3017, "train_loss": 1.2764, "steps": 300})  # fmt: skip
    made["command"] = ended({"kind": "command", "name": "convert to GGUF", "argv": ["python", "convert.py", "--outtype", "q8_0"], "tags": ["support-bot"]}, first + 132 * MINUTE_S, first + 136 * MINUTE_S, [gpu0], end=End.FAILED, cause=Cause.USER_ERROR, message="It exited with status 2: convert.py: error: the following arguments are required: --outfile", hint="The log has its last words.")  # fmt: skip
    made["cancelled"] = ended(finetune("lora-r64 (not needed any more)", lora={"r": 64}), first + 229 * MINUTE_S, first + 231 * MINUTE_S, [gpu1], end=End.CANCELLED, message="Its owner asked for it.")  # fmt: skip

    running = rig.run(rig.submit(finetune("support-bot lora-r64 lr=1e-4", learning_rate=1e-4, lora={"r": 64}, eval_data="sha256:" + "b7" * 32, eval_steps=100, num_train_epochs=4), evening - 10 * MINUTE_S), now - 98 * MINUTE_S, [gpu0])  # fmt: skip
    made["running"] = rig.progress(running, 742, 2000, eta_s=166 * MINUTE_S, loss=1.1934)
    second = rig.run(rig.submit({"kind": "generate", "name": "translate the manual", "model": "Qwen/Qwen3-4B-Instruct-2507", "data": "sha256:" + "c4" * 32, "batch_size": 16}, evening - 9 * MINUTE_S), now - 41 * MINUTE_S, [gpu1])  # fmt: skip
    made["second"] = rig.progress(second, 3120, 4800, phase="generating", eta_s=22 * MINUTE_S, tokens_per_s=1620.0)

    made["gang"] = rig.submit(finetune("both cards: full manual", gpus=2, max_length=4096), evening - 8 * MINUTE_S)
    made["next"] = rig.submit(finetune("support-bot lora-r16 lr=2e-4", lora={"r": 16}), evening - 7 * MINUTE_S)
    made["child"] = rig.submit({"kind": "generate", "name": "answers with lora-r64", "model": f"job:{running.id}", "data": "sha256:" + "a1" * 32}, evening - 6 * MINUTE_S)  # fmt: skip
    made["backlog"] = rig.submit({"kind": "command", "name": "embed the archive", "argv": ["python", "embed.py"], "priority": "backlog"}, evening - 5 * MINUTE_S)  # fmt: skip
    _leave_traces(rig, made)
    _readings(rig, made, now - (7.2 * HOUR_S if whole else 11 * MINUTE_S))
    return made


def _leave_traces(rig: FilledRig, made: Mapping[str, Job]) -> None:
    folder = rig.folder(made["running"])
    curve(folder, 742, eval_every=100, began=made["running"].attempts[-1].started_at)
    lines = [
        "Learning 69,730,304 of 1,790,305,280 parameters on the GPU in bfloat16, 2000 steps.",
        "3412 rows, 2,618,440 tokens, 1,904,112 of them learned; 41 rows were cut to 2048 tokens, none dropped.",
    ]
    lines += [f"step {step:4d}/2000   loss {1.16 + 1.15 * math.exp(-step / 110):.4f}   lr {2e-4 * (1 - step / 2400):.2e}   4.61 s/step" for step in range(560, 743)]  # fmt: skip
    folder.log.write_text("\n".join(lines) + "\n")
    for step in (600, 700):
        sealed = folder.checkpoints / f"step-{step:06d}"
        sealed.mkdir()
        (sealed / "adapter_model.safetensors").write_bytes(b"\0" * 139_000)
        (sealed / "seal.json").write_text("{}")
    write_json(folder.environment, {"torch": "2.13.0", "gpu": rig.slots[0].name})

    done = rig.folder(made["best"])
    curve(done, 480, eval_every=80)
    done.adapter.mkdir(parents=True)
    (done.adapter / "adapter_model.safetensors").write_bytes(b"\0" * 139_000)
    (done.adapter / "adapter_config.json").write_text("{}")
    done.log.write_text("The adapter is in output/adapter; loss 2.3098 → 1.1672.\n")

    failed = rig.folder(made["command"])
    failed.log.write_text("usage: convert.py [-h] --outfile OUTFILE\nconvert.py: error: the following arguments are required: --outfile\n")  # fmt: skip


def _readings(rig: FilledRig, made: Mapping[str, Job], start: float) -> None:
    chance = Random(0)
    idle = {rig.slots[1].id: (rig.now - 52 * MINUTE_S, rig.now - 41 * MINUTE_S)}

    def load(slot: Slot, ts: float) -> float:
        since, until = idle.get(slot.id, (0.0, 0.0))
        if since <= ts < until:
            return 0.0
        wave = 0.955 + chance.gauss(0, 0.02)
        return wave - 0.5 if slot.index == 0 and int(ts) % 290 < 9 else wave - 0.09 * slot.index

    rig.record(start, rig.now, load)
    rig.busy = {rig.slots[0].id: 0.97, rig.slots[1].id: 0.88}
    rig.live(rig.now)
