"""Where the record in Redis is known, and that what is installed is whole."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

from daemon.store import keys

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "daemon", "jobs", "workers")


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (ROOT / package).rglob("*.py")


def names_a_key(path: Path) -> bool:
    texts = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
    return any(isinstance(text, str) and text.startswith(("overnight:", "rq:")) for text in texts)


def test_only_one_module_names_a_key() -> None:
    assert [path for path in sources() if names_a_key(path)] == [ROOT / "daemon/store/keys.py"]


def test_every_key_is_listed_at_the_head_of_its_module() -> None:
    told = keys.__doc__ or ""
    names = [value for value in vars(keys).values() if isinstance(value, str) and value.startswith(keys.P)]
    assert [name for name in names if name != keys.P and f"    {name} " not in told] == []


def test_every_package_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in sources()}
    assert sorted(listed) == sorted(there)
