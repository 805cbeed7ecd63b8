"""Fine-tunes of a real model, cut to two layers, under fire: their loss curves must be those of an undisturbed run, step by step."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from faults import kill
from night import Result, scene_of
from rig import until
from scene import FINAL, Scene
from trouble import power_cut
from user import Json, NoAnswer

from daemon import process_tree
from jobs import demo_model
from jobs.rundir import RunDir, read_json_lines, run_dir

#: Where the tests convert the demo model to, once per checkout.
MODELS = Path(__file__).parent.parent.parent / ".pytest_cache" / "d" / "models"
SETTINGS = {"warm_start": True, "lease_s": 30.0, "renew_s": 0.5, "grace_s": 30.0, "offer_timeout_s": 120.0}
STEPS, ROWS, JOBS = 150, 64, 3
#: A fault strikes when so many more steps have been made.
STEPS_BETWEEN = (2, 25)
KINDS = (
    "child killed",
    "horse killed",
    "worker killed",
    "preempted",
    "stopped and started",
    "everything killed",
    "power cut",
)
LIMIT_S = 300.0


def drill_recipes(*, faults: int, seed: int, limit_s: float, say: Callable[[str], None]) -> Result:
    """Fine-tunes that are hurt at random steps, compared with one that nobody touched."""
    began = time.monotonic()
    model = demo_model.prepare(MODELS, layers=2)
    with TemporaryDirectory() as name:
        data = Path(name) / "rows.jsonl"
        data.write_text("".join(json.dumps(_row(n)) + "\n" for n in range(ROWS)))
        allowed = os.pathsep.join([str(MODELS), name])
        with scene_of(seed=seed, gpus=False, say=say, allowed_paths=allowed, **SETTINGS) as scene:
            result = Result(seed, False, scene.disk.kind, violations=scene.violations)
            fire = Fire(scene, result, {**DOCUMENT, "model": str(model), "data": str(data)})
            fire.drill(faults, time.monotonic() + limit_s)
    result.wall_s = time.monotonic() - began
    return result


DOCUMENT = {
    "kind": "finetune",
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_length": 32,
    "save_steps": 7,
    "lora": {"r": 4, "lora_dropout": 0.05},
    "max_attempts": 100,
}


def _row(number: int) -> dict[str, str]:
    return {"prompt": f"Bolt {number}:", "completion": f" shelf {number % 7}"}


class Fire:
    """One calm fine-tune, and some that are hurt."""

    def __init__(self, scene: Scene, result: Result, document: dict[str, Any]):
        self._scene, self._result, self._document = scene, result, document

    def drill(self, faults: int, deadline: float) -> None:
        """Hurt, wait for every end, compare."""
        calm = self._submit("calm")
        self._until(lambda: self._job(calm)["state"] in FINAL, "the calm fine-tune ends")
        hurt = [self._submit(f"hurt {n}") for n in range(JOBS)]
        while sum(self._result.faults.values()) < faults and time.monotonic() < deadline:
            alive = [job_id for job_id in hurt if self._job(job_id)["state"] not in FINAL]
            if not alive:
                break
            self._strike(self._scene.rng.choice(alive))
        for job_id in hurt:
            self._until(lambda: self._job(job_id)["state"] in FINAL, f"job {job_id} ends")  # noqa: B023 - used at once
        for job_id in hurt:
            self._compare(calm, job_id)
        jobs = [self._job(job_id) for job_id in [calm, *hurt]]
        self._result.jobs, self._result.starts = len(jobs), sum(len(job["attempts"]) for job in jobs)
        self._result.ended.update(job["state"] for job in jobs)
        if self._scene.rig.stop() != 0 or self._scene.rig.everything():
            self._scene.violation("the rig did not stop cleanly")

    def _strike(self, job_id: str) -> None:
        """One fault, when the job has gone some steps further."""
        scene, rng = self._scene, self._scene.rng
        target = self._step(job_id) + rng.randint(*STEPS_BETWEEN)
        self._until(lambda: self._step(job_id) >= target or self._job(job_id)["state"] in FINAL, f"step {target}")
        before = self._job(job_id)
        if before["state"] != "running":
            return
        kind = rng.choice(KINDS)
        at = self._carry_out(kind, before)
        self._result.faults[kind] += 1
        self._until(lambda: self._goes_on(job_id, len(before["attempts"])), f"job {job_id} goes on after: {kind}")
        took = time.time() - at
        self._result.resumed_s.setdefault(kind, []).append(took)
        saved, now = self._step_of(before), self._step(job_id)
        scene.say(
            f"{sum(self._result.faults.values()):4d} {kind} at step {saved} of {before['name']}: goes on at {now} after {took:.1f} s"
        )

    def _carry_out(self, kind: str, job: Json) -> float:
        rig, at = self._scene.rig, time.time()
        worker = rig.workers().get(job["slots"][0], 0)
        horse = next(iter(process_tree.children(worker)), 0)
        child = next(iter(process_tree.children(horse)), 0)
        match kind:
            case "preempted":
                rig.user.post(f"/jobs/{job['id']}/preempt")
            case "stopped and started":
                rig.stop()
                at = time.time()
                rig.start()
            case "everything killed":
                rig.kill_everything(self._scene.rng)
                at = time.time()
                rig.start()
            case "power cut":
                at = power_cut(self._scene).at
            case _:
                pid = {"child killed": child, "horse killed": horse, "worker killed": worker}[kind]
                if pid:
                    at = kill(pid)
        return at

    def _goes_on(self, job_id: str, attempts: int) -> bool:
        job = self._job(job_id)
        new = len(job["attempts"]) > attempts and (job["progress"] or {}).get("phase") in ("training", "saving")
        return new or job["state"] in FINAL

    def _compare(self, calm: str, job_id: str) -> None:
        job = self._job(job_id)
        if job["state"] != "succeeded":
            self._scene.violation(f"{job['name']} is {job['state']}: {job['outcome']}")
            return
        want, got = self._curve(calm), self._curve(job_id)
        if want != got:
            steps = [line["step"] for line in got]
            different = [a["step"] for a, b in zip(want, got, strict=False) if a != b][:5]
            self._scene.violation(
                f"{job['name']}: its curve differs at steps {different}; it has {len(steps)} lines, not {len(want)}"
            )
        same = self._weights(calm).read_bytes() == self._weights(job_id).read_bytes()
        if not same:
            self._scene.violation(f"{job['name']}: its adapter differs from the calm one's")
        if want == got and same:
            self._scene.say(
                f"{job['name']}: {len(got)} steps and the adapter are equal to the calm one's after {len(job['attempts'])} attempts"
            )

    # -- what is there --------------------------------------------------------------------------------------------------------

    def _submit(self, name: str) -> str:
        user = self._scene.rig.user
        user.submit({**self._document, "name": name})
        self._until(lambda: (user.send(), not user.waiting)[1], "the submission")
        return next(job_id for job_id, known in user.acknowledged.items() if known == name)

    def _job(self, job_id: str) -> Json:
        while True:
            with suppress(NoAnswer):
                return self._scene.rig.user.job(job_id)
            self._keep_daemon()
            time.sleep(0.1)

    def _keep_daemon(self) -> None:
        if self._scene.rig.exit_status is not None:
            self._scene.violation(f"the daemon ended by itself\n{self._scene.rig.log_tail()}")
            self._scene.rig.start()

    def _step(self, job_id: str) -> int:
        return self._step_of(self._job(job_id))

    def _step_of(self, job: Json) -> int:
        return int((job["progress"] or {}).get("step", 0))

    def _folder(self, job_id: str) -> RunDir:
        return run_dir(self._scene.rig.settings.runs, job_id)

    def _curve(self, job_id: str) -> list[dict[str, Any]]:
        lines = read_json_lines(self._folder(job_id).metrics)
        return [{key: value for key, value in line.items() if key != "time"} for line in lines if "loss" in line]

    def _weights(self, job_id: str) -> Path:
        return self._folder(job_id).adapter / "adapter_model.safetensors"

    def _until(self, check: Callable[[], bool], what: str) -> None:
        until(check, within_s=LIMIT_S, what=what, poll_s=0.1)
