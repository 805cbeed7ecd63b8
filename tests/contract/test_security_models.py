"""Models and adapters come from strangers: no code of theirs runs, no pickle of theirs is opened (S22, S23)."""

import ast
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import weights
from jobs.model import Cause
from jobs.run import JobError, Order
from jobs.spec import dump, parse

ROOT = Path(__file__).parents[2]
CPU = weights.Device(name="cpu", dtype="float32")
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


def order(model: Path, *, asked: bool = False, allowed: bool = False, adapter: Path | None = None) -> Order:
    document = {"kind": "generate", "model": "m", "data": "d", "trust_remote_code": asked}
    paths = {"model": str(model), **({"adapter": str(adapter)} if adapter else {})}
    return Order(
        job_id="1", attempt=1, fence=1, resume=False, spec=dump(parse(document)), paths=paths, allow_remote_code=allowed
    )


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that only code of the model's own would create."""
    return tmp_path / "code-has-run"


@pytest.fixture
def model_with_code(tmp_path: Path, marker: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    auto = {"AutoConfig": "stranger.StrangerConfig", "AutoModelForCausalLM": "stranger.StrangerModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "stranger", "auto_map": auto}))
    (folder / "stranger.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    return folder


@pytest.mark.parametrize(("asked", "allowed"), [(False, False), (True, False), (False, True)])
def test_s22_a_models_own_code_runs_only_when_asked_for_and_allowed(
    model_with_code: Path, marker: Path, asked: bool, allowed: bool
) -> None:
    with pytest.raises(JobError) as caught:
        weights.load_model(order(model_with_code, asked=asked, allowed=allowed), CPU, trainable=False)
    assert caught.value.cause is Cause.BAD_INPUT
    with pytest.raises(JobError):
        weights.load_tokenizer(order(model_with_code, asked=asked, allowed=allowed))
    assert not marker.exists()


def test_s22_the_marker_would_show_it(
    model_with_code: Path, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(JobError):
        weights.load_model(order(model_with_code, asked=True, allowed=True), CPU, trainable=False)
    assert marker.exists()


@pytest.mark.parametrize(("asked", "allowed"), [(False, False), (True, False), (False, True), (True, True)])
def test_s22_the_flag_reaches_every_loader(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, asked: bool, allowed: bool
) -> None:
    given: list[dict[str, Any]] = []

    def spy(*_: object, **fields: Any) -> None:
        given.append(fields)
        raise OSError("far enough")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", spy)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", spy)
    job = order(tiny_model, asked=asked, allowed=allowed)
    for load in (lambda: weights.load_tokenizer(job), lambda: weights.load_model(job, CPU, trainable=True)):
        with pytest.raises(JobError):
            load()
    assert [fields["trust_remote_code"] for fields in given] == [asked and allowed] * 2
    assert given[1]["use_safetensors"] is True


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.marker),)


def as_pickle(path: Path, marker: Path) -> None:
    import torch

    torch.save({"weight": Payload(marker)}, path)


def test_s23_a_model_in_pickles_is_refused_unopened(tiny_model: Path, tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    as_pickle(folder / "pytorch_model.bin", marker)
    with pytest.raises(JobError, match="cannot be used") as caught:
        weights.load_model(order(folder), CPU, trainable=False)
    assert caught.value.cause is Cause.BAD_INPUT
    assert "pickle files (.bin) are never loaded" in caught.value.hint
    assert not marker.exists()


def test_s23_an_adapter_in_pickles_is_refused_unopened(tiny_model: Path, tmp_path: Path, marker: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]})
    )
    as_pickle(adapter / "adapter_model.bin", marker)
    with pytest.raises(JobError, match=r"has no adapter_model\.safetensors"):
        weights.load_model(order(tiny_model, adapter=adapter), CPU, trainable=False)
    assert not marker.exists()


def test_s23_no_module_of_ours_opens_pickles() -> None:
    found = [f"{path.relative_to(ROOT)}:{line}: {what}" for path in our_modules() for line, what in pickles_in(path)]
    assert found == []


def test_s23_the_rule_sees_what_it_bans(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import pickle\nfrom dill import loads\nimport torch\ntorch.load('x')\nf(weights_only=False)\n")
    assert [line for line, _ in pickles_in(path)] == [1, 2, 4, 5]


def our_modules() -> Iterator[Path]:
    for package in ("api", "daemon", "jobs", "workers"):
        yield from (ROOT / package).rglob("*.py")


def pickles_in(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] in PICKLES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLES:
            yield node.lineno, str(node.module)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "torch.load":
                yield node.lineno, called
            for word in node.keywords:
                if ast.unparse(word) in ("weights_only=False", "allow_pickle=True"):
                    yield node.lineno, ast.unparse(word)
