"""Imports point one way, and the public names are these."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import protomask

ROOT = Path(__file__).parents[1]
# From the bottom up: a file may import from its own layer and from those before it.
LAYERS = (
    ("errors",),
    ("checks", "importing"),
    ("blur", "draws", "files", "opening", "pickles", "trusted", "activation", "allocator", "hooks", "patching"),
    ("records", "model", "adapting", "region", "fills", "masks", "objective", "precision", "stack", "data.sample"),
    ("targets", "blending", "folding", "memory", "problems", "data", "metrics", "visualise"),
    ("workset",),
    ("engine",),
    ("foreign", "layers"),
    ("localisers", "store", "checkpoint"),
    ("locating", "inspection", "conversion"),
    ("pairs", "loading", "training", "redrawing"),
    ("scoring", "prototype_scores", "sanity"),
    ("evaluation",),
    ("jobs",),
    ("gallery",),
    ("reporting",),
    ("commands",),
    ("cli",),
)
RECORDS_ONLY = ("metrics", "region", "visualise")


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer_of(module: str) -> int | None:
    inner = module.removeprefix("protomask.")
    matches = [
        (len(name), level) for level, names in enumerate(LAYERS) for name in names if f"{inner}.".startswith(f"{name}.")
    ]
    return max(matches)[1] if matches else None


def modules() -> list[tuple[str, Path]]:
    files = sorted((ROOT / "protomask").rglob("*.py"))
    named = [(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path) for path in files]
    return [(name, path) for name, path in named if name != "protomask"]


def test_every_module_has_a_layer() -> None:
    assert [name for name, _ in modules() if layer_of(name) is None] == []


def test_imports_point_one_way() -> None:
    upward = [
        f"{name} imports {other}"
        for name, path in modules()
        for other in imports_of(path)
        if other.startswith("protomask.") and (layer_of(other) or 0) > (layer_of(name) or 0)
    ]
    assert upward == []


def test_metrics_and_pictures_know_no_stage() -> None:
    stages = ("engine", "localisers", "locating", "pairs", "evaluation", "gallery", "commands", "store", "targets")
    wrong = [
        f"{name} imports {other}"
        for name, path in modules()
        if name.split(".")[1] in RECORDS_ONLY
        for other in imports_of(path)
        if other.startswith("protomask.") and other.split(".")[1] in stages
    ]
    assert wrong == []


def test_the_core_never_imports_an_extension() -> None:
    wrong = [
        name for name, path in modules() if any("protopnet_ext" in i or "xprotonet_ext" in i for i in imports_of(path))
    ]
    assert wrong == []


EXTENSIONS = ("protopnet_ext", "xprotonet_ext")
# What both extensions consist of, from the bottom up; what only one of them has may be imported anywhere in it.
EXTENSION_LAYERS = (("model", "losses"), ("adapter", "settings", "push"), ("stages",), ("train",), ("__init__",))


def imports_within(path: Path) -> set[str]:
    """The sibling modules that a file of an extension imports."""
    nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
    return {node.module for node in nodes if node.level == 1 and node.module}


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_extensions_have_the_same_files_and_imports_point_one_way(extension: str) -> None:
    level = {name: k for k, names in enumerate(EXTENSION_LAYERS) for name in names}
    files = {path.stem: path for path in (ROOT / extension).glob("*.py")}
    assert level.keys() <= files.keys()
    upward = [
        f"{name} imports {other}"
        for name, path in files.items()
        for other in imports_within(path)
        if level.get(other, 0) > level.get(name, len(level)) or other == name
    ]
    assert upward == []


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_no_extension_knows_the_other_or_the_commands(extension: str) -> None:
    others = (*(e for e in EXTENSIONS if e != extension), "protomask.commands", "protomask.cli")
    wrong = [
        f"{path.name} imports {other}"
        for path in (ROOT / extension).rglob("*.py")
        for other in imports_of(path)
        if other.startswith(others)
    ]
    assert wrong == []


def test_the_version_is_written_once() -> None:
    assert version("protomask") == protomask.__version__
    assert (
        "version =" not in (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[tool.setuptools.dynamic]")[0]
    )


PUBLIC = """
    LOCALISERS MDM CheckpointError Contract DataError Family InputError Localisation Maps ModelError ProtomaskError
    PrototypeModel Request ResourceError SingleMask Targets Upsampling UpsamplingCentred contract evaluate
    load_checkpoint locate register register_localiser wrap
"""


def test_the_public_names() -> None:
    assert protomask.__all__ == PUBLIC.split()
    for name in protomask.__all__:
        assert getattr(protomask, name).__doc__ or name == "LOCALISERS", name


@pytest.mark.parametrize("state", ["torch.random.get_rng_state().sum().item()", "torch.get_num_threads()"])
def test_importing_changes_nothing(state: str) -> None:
    code = f"import torch; before = {state}; import protomask; assert before == {state}; import sys; "
    code += "assert not {'protopnet_ext', 'xprotonet_ext', 'matplotlib.pyplot'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)
