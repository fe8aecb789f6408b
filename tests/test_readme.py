"""What a reader can copy runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from protomask.cli import parser
from protomask.localisers import LOCALISERS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_run(block: str) -> None:
    before = set(LOCALISERS)
    try:
        exec(compile(block, "README.md", "exec"), {})
    finally:
        for name in set(LOCALISERS) - before:
            del LOCALISERS[name]


COMMANDS = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("protomask")])
def test_commands_parse(command: str) -> None:
    parser().parse_args(shlex.split(command, comments=True)[1:])


def test_pictures_exist() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (Path(__file__).parents[1] / path).is_file(), path


def test_every_method_and_metric_is_explained() -> None:
    assert "RESULTS" not in README
