"""The README and the docs are true: snippets run, commands parse, links lead somewhere."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from leanlm.cli.flags import parse
from leanlm.cli.main import VERBS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


@pytest.mark.parametrize("snippet", [s for page in PAGES for s in blocks(page, "python")])
def test_snippets_run(snippet, capsys):
    exec(snippet, {})
    assert capsys.readouterr().out.strip()


COMMANDS = [line for page in PAGES for block in blocks(page, "sh") for line in re.findall(r"leanlm [^&\n]*", block)]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    _, verb, *flags = shlex.split(line, comments=True)
    module = importlib.import_module(VERBS[verb][0])
    if hasattr(module, "run_words"):
        return  # another program's flags
    assert isinstance(parse(module.Command, flags, f"leanlm {verb}"), module.Command)


def test_there_are_commands_and_snippets():
    assert len(COMMANDS) > 5 and blocks(ROOT / "README.md", "python")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
