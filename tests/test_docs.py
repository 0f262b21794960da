"""What the documents quote and point at is there."""

import re
import shlex
from pathlib import Path

import click
import pytest

from quantize.cli import cli

ROOT = Path(__file__).parents[1]
DOCS = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "evals" / "README.md"])
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
QUOTED = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


def quoted_messages() -> list[str]:
    """The quotations in the left columns of the pages that explain messages."""
    pages = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("troubleshooting", "hub"))
    rows = (line for page in pages for line in page.splitlines() if line.startswith("| `"))
    return [quote for row in rows for quote in QUOTED.findall(row.split("|")[1])]


def commands(path: Path) -> list[list[str]]:
    """The program's own command lines that a page or a recipe's comments show, as words, up to a pipe."""
    lines = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith(("    ", "#"))]
    found = (re.search(r"(?:^|[\s/;])quantize ((?:[a-z]+ )[^|>#&]*)", f"{line} ") for line in lines)
    words = [shlex.split(match[1].split(" (")[0]) for match in found if match]
    return [line for line in words if line[0] in cli.commands and line[1:]]


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as they are made on repository hosts."""
    heads = (line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.fixture(scope="module")
def said() -> str:
    """All texts of the program, as they are when neighbouring literals are joined."""
    texts = (path.read_text() for path in (ROOT / "quantize").rglob("*.py"))
    return re.sub(r'"\s*f?"', "", " ".join(texts)) + "No space left on device"  # the operating system's own


@pytest.mark.parametrize("message", quoted_messages())
def test_a_quoted_message_is_one_that_the_program_prints(said, message):
    assert message in said


@pytest.mark.parametrize("page", [*DOCS, *RECIPES], ids=lambda path: path.name)
def test_a_command_that_is_shown_is_one_that_the_program_takes(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for verb, *rest in commands(page):
        found = cli.commands[verb]
        one, words = (found.commands[rest[0]], rest[1:]) if isinstance(found, click.Group) else (found, rest)
        with one.make_context(verb, list(words)):
            pass


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} points at {target}"
        assert not anchor or anchor in anchors(path), f"{page.name} points at {target}#{anchor}"
