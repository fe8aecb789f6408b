"""Content hashes: what a result depends on, as a name that changes when it does.

Code counts as content: shards that another version of the package computed are not taken for ours.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from inspect import isroutine
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from protomask.data.sample import Sample
from protomask.errors import DataError, expected
from protomask.localisers.base import LOCALISERS, settings_of
from protomask.localisers.stored import Stored
from protomask.locating import resolve_method
from protomask.model import FAMILIES, Contract
from protomask.opening import is_file, is_folder

_NUMBERS_DEPEND_ON = ("torch", "torchvision", "numpy", "opencv-python", "pillow", "pycocotools", "captum", "zennit")
_OURS = "protomask"
# Only what other files do to numbers matters; these only draw, ask and schedule.
_NO_NUMBERS = (
    "cli.py",
    "commands",
    "gallery.py",
    "redrawing.py",
    "reporting",
    "training",
    "visualise",
)


def digest(*values: object) -> str:
    """32 hexadecimal digits of plain values, tensors, arrays and containers of them; the order of keys is no matter."""
    text = json.dumps(_canonical(values), separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def digest_file(path: str | Path) -> str:
    """Of a file's content.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            found = hashlib.sha256()
            while block := file.read(1 << 20):
                found.update(block)
    except OSError as error:
        raise DataError(expected(str(path), "a file that can be read", error)) from error
    return found.hexdigest()[:32]


def digest_sample(sample: Sample) -> str:
    """Of an image in the model's frame with everything that is annotated on it."""
    arrays = (sample.image, sample.box, sample.points, sample.part_masks, sample.segmentation, sample.labels)
    geometry = sample.geometry
    placed = (geometry.source_size, geometry.crop, geometry.size)
    return digest(sample.image_id, sample.group, int(sample.label), placed, arrays)


def digest_model(model: Contract) -> str:
    """Of a model: its tensors, its plain attributes, what the contract says of it, and its classes' code.

    A model that is no ``nn.Module`` may hold some, named ``module`` or otherwise: their tensors count all the same.
    """
    source: object = model.source
    said = (model.num_prototypes, model.input_shape, model.mean, model.std, model.activation_range)
    parts: list[object] = [said, model.class_weights(), code_of(type(source))]
    if model.module is not None:
        parts.extend(_layers(model.module))
    if source is not model.module:
        own = {k: v for k, v in vars(source).items() if v is not model.module} if hasattr(source, "__dict__") else {}
        # Beside a module, what begins with an underscore is an adapter's working memory.
        parts.append({k: v for k, v in own.items() if model.module is None or not k.startswith("_")})
    return digest(*parts)


def digest_weights(model: Contract) -> str | None:
    """Of a network's parameters and buffers by name, whatever code runs them; None for a model without a module.

    It tells two trainings apart that have the same name, and is the same after the package was changed, as
    :func:`digest_model` is not.
    """
    return None if model.module is None else digest(dict(model.module.state_dict()))


def _layers(module: nn.Module) -> Iterator[tuple[str, str, dict[str, object]]]:
    """(name, code, own state) of a module and all within."""
    return ((name, code_of(type(layer)), _own(layer)) for name, layer in module.named_modules())


def digest_method(name: str, given: Mapping[str, object]) -> dict[str, object]:
    """What a method's results depend on: all its settings, the files that they name, and its code."""
    localiser, _ = resolve_method(name, dict(given))
    settings = {**given, **settings_of(localiser)}  # what a factory made of a function tells none of its own
    texts = [text for text in settings.values() if isinstance(text, str) and _is_path(text, localiser)]
    found = getattr(localiser, "function", localiser)
    code = [code_of(found if isroutine(found) else type(found))]
    if name in LOCALISERS and LOCALISERS[name].make is not type(localiser):
        code.append(code_of(LOCALISERS[name].make))
    return {
        "settings": json.loads(json.dumps(settings, default=_plain)),
        "files": {text: _tree(Path(text)) for text in texts},
        "code": " ".join(code),
    }


def _is_path(text: str, localiser: object) -> bool:
    """Whether a setting names something on disk. A word such as ``blur`` does not, though a folder be called so."""
    said = isinstance(localiser, Stored) or len(Path(text).parts) > 1
    return is_file(text) or (said and is_folder(text))


def _tree(path: Path) -> str:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return digest([(p.relative_to(path).as_posix(), digest_file(p)) for p in files])


def code_of(what: Callable[..., object]) -> str:
    """Of a class or function: its name and, where it is neither ours nor a library's, the file that it is written in.

    Ours goes by :func:`versions`, libraries by their own. A decorated function goes by the file of the function itself.
    """
    if isinstance(what, partial):
        return f"{code_of(what.func)} {digest(what.args, what.keywords)}"
    what = inspect.unwrap(what)
    module = getattr(what, "__module__", "") or ""
    name = f"{module}.{getattr(what, '__qualname__', type(what).__qualname__)}"
    if module.split(".")[0] in ("builtins", "torch", "torchvision", _OURS):
        return name
    try:
        return f"{name} {_file(inspect.getfile(what))}"
    except (OSError, TypeError, DataError):
        return name


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of what numbers depend on; our own and those of the installed families with a digest of their code."""
    found = {_OURS: f"{version(_OURS)}+{_code(Path(__file__).parents[1], _NO_NUMBERS)}"}
    for name in sorted({point.value.partition(":")[0].partition(".")[0] for point in entry_points(group=FAMILIES)}):
        spec = find_spec(name)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            found[name] = _code(Path(folder))
    for name in _NUMBERS_DEPEND_ON:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an optional one
            continue
    return found


def _code(folder: Path, without: tuple[str, ...] = ()) -> str:
    files = sorted(p for p in folder.rglob("*.py") if p.relative_to(folder).parts[0] not in without)
    return digest([(p.relative_to(folder).as_posix(), digest_file(p)) for p in files])[:12]


@lru_cache(maxsize=256)
def _file(path: str) -> str:
    return digest_file(path)


def _own(module: nn.Module) -> dict[str, object]:
    """A module's own parameters, buffers and plain attributes; whether it trains is nobody's business here."""
    plain = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
    tensors: dict[str, object] = {
        **dict(module.named_parameters(recurse=False)),
        **dict(module.named_buffers(recurse=False)),
    }
    return {**plain, **tensors}


def _canonical(value: object) -> object:
    """Containers with everything in them as JSON values; keys may be anything."""
    if isinstance(value, Mapping):
        return ["mapping", *sorted(([repr(k), _canonical(v)] for k, v in value.items()), key=lambda pair: str(pair[0]))]
    if isinstance(value, (list, tuple)):
        return [_canonical(v) for v in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else _plain(value)


def _plain(value: object) -> object:
    """What JSON has no form for: tensors and arrays by content, paths as text, other objects by what they are."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.to(torch.float32) if value.dtype == torch.bfloat16 else value
        value = value.resolve_conj().contiguous().numpy()
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return ["array", str(value.dtype), list(value.shape), content]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (Path, torch.device, torch.dtype, torch.Size)):
        return str(value)
    if isinstance(value, Enum):
        return f"{type(value).__module__}.{value!s}"
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, nn.Module):  # outside the tree of modules: in a list, or in a model that is none itself
        return ["module", code_of(type(value)), _canonical(value.state_dict())]
    if is_dataclass(value) and not isinstance(value, type):
        return [code_of(type(value)), *((f.name, _canonical(getattr(value, f.name, None))) for f in fields(value))]
    if isinstance(value, (partial, type)):
        return code_of(value)
    if inspect.ismodule(value) or isinstance(value, logging.Logger) or len(_within) > _DEEP:
        return f"{type(value).__module__}.{type(value).__qualname__} {getattr(value, '__name__', '')}"
    if isroutine(value):
        return [code_of(value), *_held(value)]
    # What any other object holds counts as well, such as a network behind a wrapper or a namespace of options.
    return [
        code_of(type(value)),
        _once(value, lambda: {k: v for k, v in _public(value).items() if not k.startswith("_")}),
    ]


def _held(function: Callable[..., object]) -> list[object]:
    """What a function was made with: the object of a bound method, the variables that it closes over."""
    own = getattr(function, "__self__", None)
    inside = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _filled(cell)]
    held = [] if own is None or inspect.ismodule(own) else [own]
    return [_once(function, lambda: [*held, *inside])]


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a variable that was never set
        return False


def _public(value: object) -> Mapping[str, object]:
    slots = {k: getattr(value, k) for k in getattr(type(value), "__slots__", ()) if hasattr(value, k)}
    return {**slots, **getattr(value, "__dict__", {})}


_within: set[int] = set()
_DEEP = 8  # objects within objects: what lies deeper counts by its type


def _once(value: object, parts: Callable[[], object]) -> object:
    """The parts of an object in canonical form; where it holds itself, that it does."""
    if id(value) in _within:
        return "itself"
    _within.add(id(value))
    try:
        return _canonical(parts())
    finally:
        _within.discard(id(value))
