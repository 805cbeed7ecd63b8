"""The README is part of the product."""

from pathlib import Path

from api.cli import overnight
from daemon.settings import Settings

README = (Path(__file__).parents[2] / "README.md").read_text()
DOCS = Path(__file__).parents[2] / "docs"


def test_every_setting_is_in_the_readme() -> None:
    assert [name for name in Settings.model_fields if name != "home" and f"`{name}`" not in README] == []


def test_every_page_of_the_docs_is_linked() -> None:
    assert [page.name for page in DOCS.glob("*.md") if f"(docs/{page.name})" not in README] == []


def test_every_command_is_told_somewhere() -> None:
    told = README + "".join(page.read_text() for page in DOCS.glob("*.md"))
    assert [name for name in overnight.commands if f"overnight {name}" not in told] == []


def test_every_picture_is_shown_somewhere_and_they_are_small() -> None:
    pages = {README.replace("docs/screenshots/", "screenshots/"), *(page.read_text() for page in DOCS.glob("*.md"))}
    pictures = list((DOCS / "screenshots").iterdir())
    assert [file.name for file in pictures if not any(f"(screenshots/{file.name})" in page for page in pages)] == []
    assert sum(file.stat().st_size for file in pictures) < 3_000_000
