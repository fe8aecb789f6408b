"""What a reader of docs/ can copy runs, and every name that is to be explained there is."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from protomask.cli import main, parser
from protomask.data import Planted
from protomask.localisers import LOCALISERS
from protomask.metrics import METRICS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
# The names that an evaluation is to have; METRICS may hold more, under other fills for instance.
NAMED = """
    activation-precision relevance oirr ior pixel-auc pixel-ap average-drop increase local-perturbation consistency
    stability purity plc prc pac randomisation agreement
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def test_there_is_a_page_for_each_subject() -> None:
    assert {page.stem for page in PAGES} >= {"metrics", "adapters", "localisers", "datasets"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_blocks_run_one_after_the_other(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = set(LOCALISERS)
    monkeypatch.chdir(tmp_path)
    if '"found"' in page.read_text(encoding="utf-8"):
        _locate_into_found()
    module = ModuleType(f"docs_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    try:
        for k, block in enumerate(blocks(page, "python"), 1):
            exec(compile(block, f"{page.name}, block {k}", "exec"), vars(module))
    finally:
        for name in set(LOCALISERS) - before:
            del LOCALISERS[name]


def _locate_into_found() -> None:
    """What the pages call ``found``: results of ``protomask locate`` on ``photos``, in the working directory."""
    Path("photos").mkdir()
    Image.fromarray(Planted("birds", "test", count=1)[0].image).save("photos/bird.png")
    options = ["--targets", "top:1", "--method", "upsampling", "--panels", "0", "--quiet"]
    assert main(["locate", "demo:protopnet", "photos", "--out", "found", *options]) == 0


def _commands() -> list[str]:
    pieces = [block for page in PAGES for language in ("bash", "sh") for block in blocks(page, language)]
    lines = [line for block in pieces for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("protomask ")]


@pytest.mark.parametrize("command", sorted(set(_commands())))
def test_commands_parse(command: str) -> None:
    words = shlex.split(re.sub(r"\$\w+", "0", command), comments=True)  # a launcher's variables are numbers
    if "--help" in words:
        with pytest.raises(SystemExit) as stop:
            parser().parse_args(words[1:])
        assert stop.value.code == 0
    else:
        parser().parse_args(words[1:])


def test_every_metric_is_explained() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = {
        name
        for line in text.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([a-z0-9-]+)`", line.split("|")[1])
    }
    plain = {name.partition("@")[0] for name in METRICS} | set(NAMED.split())
    plain -= {f"local-perturbation-{kind}" for kind in ("blur", "recolour", "noise")}  # told in their mean's row
    assert plain - rows == set()
    assert rows - plain == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_directions_are_the_catalogues(page: Path) -> None:
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for name in re.findall(r"`([a-z0-9-]+)`", cells[0]) if line.startswith("| `") else ():
            if name in METRICS and ("↑" in line) != ("↓" in line):
                assert ("↑" in line) == METRICS[name].higher_is_better, name


@pytest.mark.parametrize("name", ["01_patch", "02_visualise", "03_evaluate"])
def test_notebooks_are_short_and_hold_no_outputs(name: str) -> None:
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert 6 <= len(cells) <= 20
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
    for k, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            compile(source.replace("%matplotlib inline", ""), f"{name}, cell {k}", "exec")


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), target


def test_lines_are_short_enough_to_read() -> None:
    # Tables are long lines by nature.
    long = [
        f"{page.name}:{k}"
        for page in PAGES
        for k, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 140 and not line.startswith("|")
    ]
    assert long == []
