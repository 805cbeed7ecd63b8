"""What a fine-tune would learn from, found by a short process with limits (jobs.preview): a chat template is the model's program."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from daemon.fit import model_folder
from jobs import data, model_facts
from jobs.data import DataReport
from jobs.light_tokenizer import read_template, template_file
from jobs.preview import Preview, known_of
from jobs.spec import FinetuneSpec, dump

#: So long it may take in all, and so many at once: each is a process with a tokenizer.
WALL_S, AT_ONCE = 20.0, 2
#: What the process gets of this one's environment.
ENVIRONMENT = ("PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV")
#: Fields of the document that the preview depends on.
TELLING = frozenset({"kind", "objective", "data_fields", "max_length", "packing", "assistant_only_loss"})

_turn = threading.BoundedSemaphore(AT_ONCE)
_reads: TypeAdapter[Preview] = TypeAdapter(Preview)


def preview(
    spec: FinetuneSpec,
    paths: Mapping[str, str],
    report: DataReport | None,
    *,
    rows: Sequence[Sequence[Any]] | None = None,
    known: Mapping[str, Any] | None = None,
    template: str | None = None,
) -> Preview:
    """The preview of a fine-tune whose names lead to these paths.

    `rows`: some of the data's rows with their lines, where the file is not on the rig yet; `known`: fields that are known of it.
    `template`: a chat template that is not on the rig yet.
    """
    folder = model_folder(spec.model, paths)
    # only what counts, so that a sweep's points share an answer
    told = {name: value for name, value in dump(spec).items() if name in TELLING}
    facts = known_of(report) | dict(known or {})
    request = {
        "spec": told,
        "model": str(folder) if folder else None,
        "template": template or _template(paths),
        "data": paths.get("data"),
        "rows": rows,
        "known": facts,
    }
    if rows is None and (report is None or not Path(paths["data"]).exists()):
        return Preview(**facts, unknown="its data is not on the rig yet")
    identity = data.identity(Path(paths["data"])) if rows is None else ()
    return _answer(json.dumps(request), (identity, model_facts.identity(folder) if folder else ()))


def _template(paths: Mapping[str, str]) -> str | None:
    file = template_file(paths)
    try:
        return read_template(file) if file is not None and file.exists() else None
    except ValueError:
        return None  # admission tells it


@lru_cache(maxsize=64)
def _answer(request: str, _identity: object) -> Preview:
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    argv = [sys.executable, "-m", "jobs.preview"]
    try:
        with _turn:
            done = subprocess.run(
                argv, input=request.encode(), capture_output=True, env=environment, timeout=WALL_S, check=True
            )
        return _reads.validate_json(done.stdout)
    except subprocess.TimeoutExpired:
        return Preview(unknown=f"the preview took longer than {WALL_S:.0f} s")
    except (subprocess.CalledProcessError, ValueError) as error:
        said = getattr(error, "stderr", b"").decode(errors="replace").strip().splitlines()
        return Preview(unknown=f"the preview did not succeed: {said[-1][:200] if said else 'it was ended'}")
