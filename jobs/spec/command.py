"""The document of a program of the owner's."""

import re
from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, NonNegativeInt, model_validator

from jobs.interpreter import PYTHON_NAMES
from jobs.spec.common import JobSpec, Text

ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
#: A submission must not redirect the network, the loader, the interpreter or the pin of the rig.
REFUSED_ENVIRONMENT = re.compile(
    r"(LD_.*|DYLD_.*|PYTHON.*|.*_PROXY|OVERNIGHT_.*|CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|PATH|HOME|BASH_ENV|ENV|IFS)",
    re.IGNORECASE,
)


class CommandSpec(JobSpec):
    """Any program of the owner's, as a list of arguments. No shell."""

    kind: Literal["command"] = "command"
    argv: tuple[Text, ...] = Field(min_length=1, max_length=1024)
    workdir: Text | None = Field(None, description="Folder with its code, sent along by content; it runs in there.")
    cwd: Text | None = Field(None, description="Folder to run in: below an allowed path of the rig, or inside workdir; the run folder's output/ else.")  # fmt: skip
    python: Text = Field("auto", description="What `python` is: auto (uv when the folder has a uv.lock, then its .venv, then the rig's), uv, rig, or an absolute path.")  # fmt: skip
    env: dict[str, Text] = Field({}, max_length=256)
    secrets: tuple[str, ...] = Field((), max_length=32, description="Names of the rig's secrets to put into its environment.")  # fmt: skip
    retries: NonNegativeInt = Field(0, le=100, description="Tries after a non-zero exit; 0: a bug does not eat the night.")  # fmt: skip

    @model_validator(mode="after")
    def _environment_is_harmless(self) -> "CommandSpec":
        for name in (*self.env, *self.secrets):
            if not ENVIRONMENT_NAME.fullmatch(name):
                raise ValueError(f"env: {name!r} is not the name of an environment variable")
            if REFUSED_ENVIRONMENT.fullmatch(name):
                raise ValueError(f"env: {name} cannot be set by a job; it belongs to the rig")
        if not self.argv[0]:
            raise ValueError("argv: the command itself is empty")
        return self

    @model_validator(mode="after")
    def _places_agree(self) -> "CommandSpec":
        inside = PurePosixPath(self.cwd or ".")
        if self.workdir and (inside.is_absolute() or ".." in inside.parts):
            raise ValueError("cwd: is a folder inside workdir when there is one")
        if self.python not in ("auto", "uv", "rig") and not self.python.startswith("/"):
            raise ValueError("python: is auto, uv, rig or an absolute path on the rig")
        if self.python != "auto" and self.argv[0] not in PYTHON_NAMES:
            raise ValueError(f"python: says what `python` is, and this command begins with {self.argv[0]!r}")
        return self
