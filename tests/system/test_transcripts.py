"""Every command that the README and the docs show is run here, and says what they say it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.main import get_command

from threefold_ops.cli import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.conftest import Local

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "models" / "README.md"]
BLOCK = re.compile(r"^```(console|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What starts or ends a system of its own: tests of their own run these.
ELSEWHERE = ("make ", "git ", "cd ", "threefold up", "threefold down", "threefold demo")


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a page, and what the page says that it prints."""

    page: str
    command: str
    expected: str


def steps(page: Path) -> Iterator[Step]:
    """The commands of a page's transcripts, in order."""
    for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                lines = part.splitlines(keepends=True)
                count = 1
                while lines[count - 1].rstrip().endswith("\\"):
                    count += 1
                yield Step(page.name, "".join(lines[:count]).strip(), "".join(lines[count:]))


def matches(expected: str, got: str) -> bool:
    """Whether output is as the page says: `…` stands for any text, alone on a line for any lines."""
    pattern = ""
    for line in expected.splitlines():
        pattern += (
            r"(?:.*\n)*?" if line.strip() == "…" else ".*".join(map(re.escape, line.rstrip().split("…"))) + r"\s*\n"
        )
    return re.fullmatch(pattern, "".join(line.rstrip() + "\n" for line in got.splitlines())) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_pages_commands_print_what_it_says(page: Path, local: Local, tmp_path: Path) -> None:
    environment = {
        "PATH": f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "THREEFOLD_STATE": str(local.state),
        "TMPDIR": str(tmp_path),
        "COLUMNS": "120",
    }
    for step in steps(page):
        if step.command.startswith(ELSEWHERE):
            continue
        done = subprocess.run(
            ["bash", "-c", step.command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        got = done.stdout + (done.stderr if done.returncode else "")
        assert matches(step.expected, got), f"{step.page}: $ {step.command}\n--- said\n{step.expected}--- got\n{got}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_pages_threefold_commands_exist_with_their_options(page: Path) -> None:
    verbs = get_command(load()).commands  # type: ignore[attr-defined]
    for _, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in re.findall(r"^(?:\$ )?(?:\.venv/bin/)?threefold (.*)$", text, re.MULTILINE):
            words = shlex.split(line.rstrip("\\").partition("|")[0], comments=True)
            assert words[0] in verbs, line
            verb = verbs[words[0]]
            if hasattr(verb, "commands"):
                assert words[1] in verb.commands, line
                verb = verb.commands[words[1]]
            known = {option for parameter in verb.params for option in (*parameter.opts, *parameter.secondary_opts)}
            used = {word.partition("=")[0] for word in words[1:] if word.startswith("-") and word != "-"}
            assert used <= known | {"--help"}, f"{page.name}: {line}"


def test_a_transcript_that_lies_is_noticed() -> None:
    assert matches("a … c\n…\nend\n", "a b c\nany\nthing\nend\n")
    assert not matches("a … c\nend\n", "a b d\nend\n")
    assert not matches("one\n", "one\ntwo\n")
