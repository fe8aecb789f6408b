"""What a reader of docs/ can copy runs, and every name that is to be explained there is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from protomask.cli import main, parser
from protomask.data import Planted
from protomask.loading import load_model
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


# Commands --------------------------------------------------------------------------------------------------------

SHELLS = ("bash", "sh")
SCRIPTS = Path(sys.executable).parent  # where the console scripts are installed
COPIED = (*PAGES, ROOT / "README.md")
_BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```", flags=re.S | re.M)


@dataclass(frozen=True)
class Block:
    """A block of commands or configuration, with what the comment right before it says."""

    page: Path
    line: int
    language: str
    text: str
    mark: str

    @property
    def reason(self) -> str:
        """Why it is not run here; empty where it is."""
        kind, _, said = self.mark.partition(": ")
        if kind == "ci":
            return f".ci/run runs it, as its step for {said}"
        return said if kind == "not run" else ""

    def __str__(self) -> str:
        return f"{self.page.stem}-{self.line}"


def found_in(text: str, page: Path, languages: tuple[str, ...]) -> list[Block]:
    return [
        Block(page, text.count("\n", 0, m.start("text")), m["language"], m["text"], m["mark"] or "")
        for m in _BLOCK.finditer(text)
        if m["language"] in languages
    ]


def found(*languages: str) -> list[Block]:
    return [block for page in COPIED for block in found_in(page.read_text(encoding="utf-8"), page, languages)]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands of the pages take for granted, under the names that they use."""
    folder = tmp_path_factory.mktemp("given")
    scenes = Planted("birds", "test", count=24)
    for k in range(24):
        place = folder / "by-class" / scenes.class_names[scenes[k].label] / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scenes[k].image).save(place)
    (folder / "photos").mkdir()
    Image.fromarray(scenes[0].image).save(folder / "photos" / "bird.png")
    loaded = load_model("demo:protopnet")
    assert loaded.folder is not None
    shutil.copytree(loaded.folder, folder / "runs" / "cub")
    torch.save(loaded.model.module, folder / "model.pth")
    weights = loaded.model.class_weights()
    assert weights is not None
    own = weights.argmax(1).numpy()
    np.save(folder / "bb10.npy", np.stack([np.arange(len(own)), *[np.zeros(len(own), int)] * 4, own], 1))
    registered = (b for b in blocks(ROOT / "docs" / "localisers.md", "python") if "register_localiser" in b)
    (folder / "mine.py").write_text(next(registered), encoding="utf-8")
    return folder


def run_in(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Commands in a shell that stops at the first failure, with the installed scripts and one thread."""
    environment = {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    command = ["bash", "-euo", "pipefail", "-c", text]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("page", COPIED, ids=lambda page: page.stem)
def test_commands_run_one_after_the_other(page: Path, given: Path, tmp_path: Path) -> None:
    shutil.copytree(given, tmp_path, dirs_exist_ok=True)
    for block in found(*SHELLS):
        if block.page == page and not block.reason:
            ended = run_in(tmp_path, block.text)
            assert ended.returncode == 0, f"{page.name}, line {block.line}: {ended.stderr[-2000:]}"
            assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("block", [block for block in found(*SHELLS) if block.reason], ids=str)
def test_what_does_not_run_here_says_why(block: Block) -> None:
    assert len(block.reason.split()) > 3
    pytest.skip(block.reason)  # so that pytest's summary lists it


def test_marks_are_read_and_others_are_no_excuse(tmp_path: Path) -> None:
    text = "<!-- not run: needs a GPU of its own -->\n```bash\nfalse\n```\n<!-- a note -->\n```sh\ntrue\nfalse\n```\n"
    marked, plain = found_in(text, tmp_path, SHELLS)
    assert (marked.reason, plain.reason) == ("needs a GPU of its own", "")
    assert run_in(tmp_path, plain.text).returncode != 0
    assert found_in("<!-- not run: far away -->\n\n```sh\nfalse\n```\n", tmp_path, SHELLS)[0].reason == ""


def test_the_configuration_registers_the_family_of_its_page(tmp_path: Path) -> None:
    """As pip would: what the table of entry points says beside the page's own code as the package that it names."""
    (block,) = found("toml")
    lines = [line.strip() for line in block.text.splitlines() if line.strip()]
    group, *entries = [line.replace('"', "") for line in lines]
    package = entries[0].partition("=")[2].partition(":")[0].strip()
    code = "\n".join(blocks(block.page, "python"))
    (tmp_path / f"{package}.py").write_text(code, encoding="utf-8")
    about = tmp_path / f"{package}-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    group = group.removeprefix("[project.entry-points.").removesuffix("]")
    (about / "entry_points.txt").write_text("\n".join([f"[{group}]", *entries]) + "\n")
    asked = "from protomask.model import families; print(families()['dotted'].name)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", asked]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.stdout.endswith("dotted\n"), ended.stderr


def _commands() -> list[str]:
    pieces = [block for page in PAGES for language in SHELLS for block in blocks(page, language)]
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
