"""What of the rig's own settings a job's recipe gets: a converter for exports, trackers with their variables and secrets.

A submission names none of it: what runs here and what leaves the rig is for its owner to say.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daemon.places import Refused
from daemon.rig_secrets import read_secrets
from daemon.settings import Settings
from jobs.spec import ExportSpec, FinetuneSpec, Spec
from jobs.spec.export import GGUF_MODEL_TYPES
from jobs.trackers import PREFIXES


def settings_for(spec: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """For the orders of an attempt."""
    found: dict[str, Any] = {}
    if "gguf" in (spec.get("to") or spec.get("export") or ()) and settings.gguf_converter:
        found["gguf_converter"] = list(settings.gguf_converter)
    if _tracks(spec, settings):
        found["trackers"] = list(settings.trackers)
    return found


def environment_for(spec: Mapping[str, Any], settings: Settings) -> dict[str, str]:
    """Trackers' own variables, and the secrets that begin like theirs, for a job that tells them. Raises Refused for a bad secrets file."""
    if not _tracks(spec, settings):
        return {}
    prefixes = tuple(prefix for name in settings.trackers for prefix in PREFIXES[name])
    secrets = read_secrets(settings.secrets_file)
    return {**settings.tracker_variables, **{name: text for name, text in secrets.items() if name.startswith(prefixes)}}


def check_export(spec: Spec, paths: Mapping[str, str], settings: Settings) -> None:
    """Raises Refused when the model's shape is known here, is not written as GGUF, and the rig has no converter."""
    wanted = spec.to if isinstance(spec, ExportSpec) else spec.export if isinstance(spec, FinetuneSpec) else ()
    if "gguf" not in wanted or settings.gguf_converter or not paths.get("model", "").startswith("/"):
        return
    try:
        kind = json.loads((Path(paths["model"]) / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return  # still to come, or told at `model`
    if kind not in GGUF_MODEL_TYPES:
        known = ", ".join(GGUF_MODEL_TYPES)
        raise Refused(
            f"a {kind} model is not written as GGUF here ({known} are): the rig's owner can name llama.cpp's converter in gguf_converter"
        )


def _tracks(spec: Mapping[str, Any], settings: Settings) -> bool:
    return bool(settings.trackers) and spec.get("kind") == "finetune" and bool(spec.get("trackers", True))
