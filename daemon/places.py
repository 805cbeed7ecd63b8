"""Where the fields of a document that name files lead on this rig: models folder, uploads, allowed paths, other jobs' results.

The one place for it: admission asks before a job is accepted, and a worker asks again when it writes the attempt's orders.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from daemon.settings import Settings
from jobs.data.arrow_rows import is_saved_dataset
from jobs.model import Job, State
from jobs.rundir import RunDir, run_dir
from jobs.spec import HUB_ID, INPUT_REFERENCE, JOB_REFERENCE, MODEL_NAME, FieldError, InvalidSpec

#: A chain of fine-tunes of fine-tunes longer than this is a circle.
LONGEST_CHAIN = 100
#: How many models a message lists.
LISTED = 12
#: Kinds of jobs whose result is a model.
MODELS = ("finetune", "export")


class Refused(ValueError):
    """What is wrong with one field's value, and what to do about it."""


class Places:
    """This rig's files, as documents may name them."""

    def __init__(
        self,
        settings: Settings,
        runs: Path,
        find_job: Callable[[str], Job | None],
        uploaded_elsewhere: Callable[[str], bool] = lambda digest: False,
    ):
        self._settings, self._runs, self._find_job = settings, runs, find_job
        self._uploaded_elsewhere = uploaded_elsewhere
        self._roots = (settings.models.resolve(), *settings.allowed_paths)

    def locate(self, spec: Mapping[str, Any]) -> tuple[dict[str, str], list[FieldError]]:
        """Absolute paths of the fields that name files or folders, and what is wrong with them."""
        lookups: dict[str, Callable[[str], str | dict[str, str]]] = {
            "model": self.model,
            "adapter": self.adapter,
            "data": self.data,
            "eval_data": self.data,
            "chat_template": self.data,
            "workdir": self.workdir,
            "cwd": self.cwd,
            "task_path": self.cwd,
        }
        if spec.get("workdir"):
            del lookups["cwd"], lookups["task_path"]  # they are inside of that
        found: dict[str, str] = {}
        errors: list[FieldError] = []
        for name, look_up in lookups.items():
            if not (text := spec.get(name)):
                continue
            try:
                place = look_up(str(text))
                if name == "adapter" and name in found:
                    raise Refused(
                        "the model is a job's result and brings its own adapter: leave this out, or name the base model"
                    )
            except Refused as refusal:
                errors.append(FieldError(name, str(refusal)))
                continue
            found |= place if isinstance(place, dict) else {name: place}
        for name, look in (("adapters", self._adapters), ("engine", self._engine)):
            if spec.get(name):
                try:
                    found |= look(spec, found)
                except Refused as refusal:
                    errors.append(FieldError(name, str(refusal)))
        return found, errors

    def _adapters(self, spec: Mapping[str, Any], found: Mapping[str, str]) -> dict[str, str]:
        """`adapters.NAME` for each that is not the model itself."""
        if "adapter" in found:
            raise Refused("the model is a job's result and brings its own adapter: leave these out, or name the base model")  # fmt: skip
        places: dict[str, str] = {}
        for name, text in spec["adapters"].items():
            try:
                places |= {f"adapters.{name}": self.adapter(str(text))} if text else {}
            except Refused as refusal:
                raise Refused(f"{name}: {refusal}") from None
        return places

    def _engine(self, spec: Mapping[str, Any], _found: Mapping[str, str]) -> dict[str, str]:
        """`vllm_python`, where the job may want it and the rig has it."""
        python = self._settings.vllm_python
        if spec["engine"] == "vllm" and python is None:
            raise Refused("this rig has no vLLM: set vllm_python in its config.toml, or leave engine out")
        return {"vllm_python": str(python)} if python is not None and spec["engine"] != "transformers" else {}

    def model(self, text: str) -> dict[str, str]:
        """`model`, and for a learnt adapter its `adapter` too. Nothing for a hub id: it is fetched by its name."""
        if match := JOB_REFERENCE.fullmatch(text):
            job = self._result(match[1], *MODELS)
            if _is_whole(job):
                return {"model": str(_there(job, _whole(job, run_dir(self._runs, job.id))))}
            base = self._beneath(text)
            return {"model": self.model(base).get("model", base), "adapter": self._adapter_of(match[1])}
        if text.startswith("/"):
            return {"model": str(_model_folder(self._allowed(text)))}
        if MODEL_NAME.fullmatch(text) and (self._settings.models / text).exists():
            return {"model": str(_model_folder(self._allowed(str(self._settings.models / text))))}
        if not HUB_ID.fullmatch(text):
            raise Refused(f"{text[:100]!r} is not a model of this rig; {self._models()}")
        if not self._settings.allow_hub:
            raise Refused(
                f"{text!r} would have to be downloaded, and this rig does not (allow_hub = false); {self._models()}"
            )
        return {}

    def base_model(self, text: str) -> str:
        """The name behind `job:N`: the model that the fine-tune (or the one before it) started from."""
        for _ in range(LONGEST_CHAIN):
            if not (match := JOB_REFERENCE.fullmatch(text)):
                return text
            text = str(self._result(match[1], *MODELS).spec["model"])
        raise Refused("is a circle of jobs that start from each other")

    def _beneath(self, text: str) -> str:
        """What an adapter stands on: the name of a model, or of a job that learnt all weights."""
        for _ in range(LONGEST_CHAIN):
            match = JOB_REFERENCE.fullmatch(text)
            if not match or _is_whole(job := self._result(match[1], *MODELS)):
                return text
            text = str(job.spec["model"])
        raise Refused("is a circle of jobs that start from each other")

    def adapter(self, text: str) -> str:
        """The folder of a LoRA adapter."""
        if match := JOB_REFERENCE.fullmatch(text):
            return self._adapter_of(match[1])
        folder = self._allowed(text)
        if not (folder / "adapter_config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise Refused("is not an adapter: a folder with adapter_config.json and .safetensors files")
        return str(folder)

    def data(self, text: str) -> str:
        """A file of rows, or a folder that `datasets` saved."""
        if match := INPUT_REFERENCE.fullmatch(text):
            return self._upload(match[1])
        if match := JOB_REFERENCE.fullmatch(text):
            job = self._result(match[1], "generate")
            return str(_there(job, run_dir(self._runs, job.id).generations))
        if not text.startswith("/"):
            raise Refused(
                f"{text[:100]!r} is neither uploaded nor an absolute path on the rig (`submit` uploads by itself)"
            )
        path = self._allowed(text)
        if not path.is_file() and not is_saved_dataset(path):
            raise Refused("is not a file on the rig, nor a folder that `datasets` saved")
        return str(path)

    def workdir(self, text: str) -> str:
        """A working folder that came along."""
        if match := INPUT_REFERENCE.fullmatch(text):
            return self._upload(match[1])
        raise Refused(
            f"{text[:100]!r} is not uploaded (`submit` packs a folder and uploads it); one on the rig is named by cwd"
        )

    def cwd(self, text: str) -> str:
        """A folder to run in."""
        folder = self._allowed(text)
        if not folder.is_dir():
            raise Refused("is not a folder on the rig")
        return str(folder)

    def _upload(self, digest: str) -> str:
        path = self._settings.inputs / digest
        if not path.is_file() and not self._uploaded_elsewhere(digest):
            raise Refused(f"is not uploaded: PUT the file to /api/v1/inputs/{digest} first (`submit` does that)")
        return str(path)

    def _adapter_of(self, job_id: str) -> str:
        job = self._result(job_id, "finetune")
        if _learns_all(job):
            raise Refused(f"job {job_id} learns all weights and leaves no adapter: name it as the model")
        return str(_there(job, run_dir(self._runs, job.id).adapter))

    def _result(self, job_id: str, *kinds: str) -> Job:
        job = self._find_job(job_id)
        if job is None:
            raise Refused(f"there is no job {job_id}")
        if job.kind not in kinds:
            raise Refused(f"job {job_id} is a {job.kind} job; this needs the result of a {' or '.join(kinds)} job")
        if job.state in (State.FAILED, State.CANCELLED):
            raise Refused(f"job {job_id} is {job.state} and leaves no result: retry it first")
        return job

    def _allowed(self, text: str) -> Path:
        """The real path, when it lies below an allowed folder; what a link leads out of is outside."""
        if not text.startswith("/"):
            raise Refused(f"{text[:100]!r} is not an absolute path on the rig")
        try:
            path = Path(text).resolve()
        except (OSError, RuntimeError):  # too long, or links in a circle
            raise Refused("is not a usable path") from None
        if not any(path.is_relative_to(root) for root in self._roots):
            allowed = ", ".join(map(str, self._settings.allowed_paths)) or "none yet"
            raise Refused(
                f"is outside the folders that jobs may name (allowed_paths in the rig's config.toml: {allowed})"
            )
        return path

    def _models(self) -> str:
        names = sorted(_folders(self._settings.models))
        more = ", …" if len(names) > LISTED else ""
        there = f"there are {', '.join(names[:LISTED])}{more}" if names else "its models folder is empty"
        return f"{there}. A hub id (org/name), an allowed absolute path or job:N will do, too"


def resolve(
    spec: Mapping[str, Any], settings: Settings, runs: Path, *, get_job: Callable[[str], Job]
) -> dict[str, str]:
    """The absolute paths for an attempt's orders: model, adapter, adapters.NAME, data, eval_data, workdir, cwd, where the document names
    them; `vllm_python` for a generation that may use it.

    Raises InvalidSpec when something is gone or no longer allowed. A hub id has no path, but where `job:N` led to one,
    `model` is that id.
    """

    def find(job_id: str) -> Job | None:
        try:
            return get_job(job_id)
        except KeyError:
            return None

    found, errors = Places(settings, runs, find).locate(spec)
    if errors:
        raise InvalidSpec(errors)
    return found


def _model_folder(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise Refused(f"{path.name} is not a model: a folder with config.json and .safetensors files")
    if not any(path.glob("*.safetensors")):
        raise Refused(f"{path.name} has no .safetensors file; weights in pickle formats (.bin, .pt) are not loaded")
    return path


def _learns_all(job: Job) -> bool:
    return job.spec.get("method") == "full"


def _is_whole(job: Job) -> bool:
    """Whether the result needs no model beneath it."""
    return _learns_all(job) or job.kind == "export"


def _whole(job: Job, folder: RunDir) -> Path:
    if job.kind != "export":
        return folder.model
    if "merged" not in job.spec["to"]:
        raise Refused(
            f"job {job.id} wrote a GGUF file only, and models are loaded from safetensors: export it to merged, too"
        )
    return folder.merged


def _there(job: Job, path: Path) -> Path:
    """A result that is still to come, or one that is really there."""
    if job.state is State.SUCCEEDED and not path.exists():
        raise Refused(f"job {job.id} succeeded, but its result is not on this rig any more")
    return path


def _folders(path: Path) -> Iterator[str]:
    if path.is_dir():
        yield from (entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
