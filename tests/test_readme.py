"""The README says what is so: its experiment is the one that runs, its files and commands are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prisma_steps.cli import app
from prisma_steps.step import all_steps

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_shows_the_quickstart_as_it_is() -> None:
    assert f"```yaml\n{(ROOT / 'experiments/quickstart.yaml').read_text().rstrip()}\n```" in README


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_what_it_links_to_is_there(target: str) -> None:
    assert (ROOT / target).is_file()


def test_it_names_every_command() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert commands == set(re.findall(r"prisma-steps ([a-z]+)", README))


def test_it_names_every_step_and_figure() -> None:
    assert {name for name in all_steps() if name not in README} == set()
