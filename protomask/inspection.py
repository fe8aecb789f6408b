"""What a checkpoint is, told without executing anything in it: ``inspect_checkpoint("model.pth")``."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from protomask.checkpoint import (
    TENSORS,
    Description,
    check_folder,
    check_foreign,
    own_folder,
    read_description,
    readers,
    recognise,
)
from protomask.errors import CheckpointError, ProtomaskError
from protomask.foreign import (
    MODULE,
    Foreign,
    Layout,
    Stated,
    check_harmless,
    parameter_count,
    read_foreign,
    read_safetensors,
    verdict,
)
from protomask.opening import check_regular, is_folder
from protomask.pickles import shown

OURS = "protomask checkpoint"
VERDICTS = {
    "data": "rebuilt by our own reader",
    "class": "a class of torch, torchvision or numpy, or a plain value: a stand-in here",
    "code": "torch.load would import and run it; a stand-in here",
    "refused": "a call that no model needs",
}


@dataclass(frozen=True)
class Use:
    """A global that a pickle names: ``name``, its ``verdict`` (a key of :data:`VERDICTS`), and how it is used."""

    name: str
    verdict: str
    how: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint is.

    Attributes:
        path: file or folder.
        size: bytes.
        form: ``"folder"``, ``"zip"``, ``"legacy"``, ``"pickle"`` or ``"safetensors"``.
        kind: ``"protomask checkpoint"``, ``"state dict"``, ``"module"`` or ``"other"``.
        keys: under which keys of wrapping dicts the weights lie.
        prefix: what all names begin with, such as ``"module."`` of DataParallel.
        class_name: of a module.
        globals: what its pickle names.
        tensors: how many.
        parameters: elements of floating-point tensors but batch norm's statistics.
        dtypes: tensors by dtype.
        layout: what the names and shapes imply; None where no family knows them.
        attributes: a module's plain attributes, as short texts.
        loads: whether ``load_checkpoint`` takes it as it is, but for its tensors' values: ``"yes"``, or why not.
    """

    path: str
    size: int
    form: str
    kind: str
    keys: tuple[str, ...] = ()
    prefix: str = ""
    class_name: str = ""
    globals: tuple[Use, ...] = ()
    tensors: int = 0
    parameters: int = 0
    dtypes: Mapping[str, int] = field(default_factory=dict)
    layout: Layout | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    loads: str = "yes"


def inspect_checkpoint(path: str | os.PathLike[str], *, key: str | None = None) -> Inspection:
    """What the checkpoint at ``path`` is: a folder of ours, or any file; nothing in it runs, no tensor is read.

    Args:
        path: a folder or a file.
        key: of a wrapping dict, where several of its entries hold weights.

    Raises:
        CheckpointError: nothing there, or a folder that is no checkpoint of ours.
    """
    path = own_folder(path)
    if is_folder(path):
        return _ours(path)
    size = check_regular(path, "a checkpoint: a folder or a file", CheckpointError)
    foreign = read_foreign(path, key=key, data=False)
    known = recognise(foreign) if foreign.tensors else None
    layout = None if known is None else known[1]
    return Inspection(
        str(path),
        size,
        foreign.form,
        foreign.kind,
        foreign.keys,
        foreign.prefix,
        foreign.class_name,
        tuple(Use(str(n), verdict(n, how), tuple(sorted(how))) for n, how in foreign.uses.items()),
        len(foreign.tensors),
        parameter_count(foreign.tensors),
        _dtypes(foreign.tensors),
        layout,
        {name: shown(value) for name, value in foreign.attributes.items() if name != "features"},
        _whether(foreign, layout),
    )


def _whether(foreign: Foreign, layout: Layout | None) -> str:
    try:
        check_harmless(foreign)
    except CheckpointError as error:
        return f"no: {error}"
    if layout is None:
        reading = f"no family that reads foreign checkpoints ({', '.join(readers()) or 'none'}) knows its names"
        return f"no: {reading}" + (" (with --trust it runs its own code)" if foreign.kind == MODULE else "")
    if layout.refused:
        return f"no: {layout.refused}" + (" (with trust it runs its own)" if foreign.kind == MODULE else "")
    missing = [] if len(layout.backbones) == 1 else ["the backbone"]
    missing += [] if layout.has_classes else ["each prototype's class (bb.npy, or prototypes per class)"]
    stated = _as_if_told(layout)
    if stated is not None:
        try:
            check_foreign(foreign, stated)
        except ProtomaskError as error:
            return f"no: {error}" + (" (with trust it runs its own)" if foreign.kind == MODULE else "")
    return f"when told {' and '.join(missing)}" if missing else "yes"


def _as_if_told(layout: Layout) -> Stated | None:
    """What has to be said before the rest can be compared; None where nothing that could be made up is possible."""
    if len(layout.backbones) != 1:
        return None
    if layout.has_classes:
        return Stated()
    each, rest = divmod(layout.prototype_shape[0], max(1, layout.num_classes))
    return None if rest or not each else Stated(prototypes_per_class=each)


def _ours(folder: Path) -> Inspection:
    description = read_description(folder)
    path = folder / TENSORS
    loads = "yes"
    try:
        check_folder(folder)
    except ProtomaskError as error:
        loads = f"no: {error}"
    tensors = read_safetensors(path, data=False)
    return Inspection(
        str(folder),
        path.stat().st_size,
        "folder",
        OURS,
        tensors=len(tensors),
        parameters=parameter_count({n: t for n, t in tensors.items() if n != "prototype_class_identity"}),
        dtypes=_dtypes(tensors),
        layout=_layout(description),
        attributes={"size": str(description.size), "activation": description.activation},
        loads=loads,
    )


def _dtypes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return dict(Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values()))


def _layout(description: Description) -> Layout:
    return Layout(
        description.family,
        description.family,
        backbones=(description.backbone,),
        add_on=description.add_on,
        prototype_shape=description.prototype_shape,
        num_classes=description.num_classes,
        has_classes=True,
    )


def as_json(found: Inspection) -> str:
    """The record as a JSON object."""
    values = {name: getattr(found, name) for name in found.__dataclass_fields__}
    values["globals"] = [vars(use) for use in found.globals]
    values["layout"] = None if found.layout is None else vars(found.layout)
    return json.dumps(values, indent=2, default=dict) + "\n"


def as_text(found: Inspection) -> str:
    """The record as lines to read."""
    where = f", under {' / '.join(found.keys)}" if found.keys else ""
    lines = [f"{found.path}: {found.kind}{where} ({found.form}, {found.size:,} bytes)"]
    if found.class_name:
        lines.append(f"class: {found.class_name}")
    if found.prefix:
        lines.append(f"prefix: {found.prefix} (taken off)")
    if found.tensors:
        kinds = ", ".join(f"{count} {dtype}" for dtype, count in found.dtypes.items())
        lines.append(f"tensors: {found.tensors} ({kinds}), {found.parameters:,} parameters")
    lines += _layout_lines(found.layout)
    lines += [f"  {name} = {value}" for name, value in found.attributes.items()]
    for name, meaning in VERDICTS.items():
        named = [use for use in found.globals if use.verdict == name]
        if named:
            lines += [f"globals, {meaning}:", *sorted(_use_line(use) for use in named)]
    lines.append(f"loads: {found.loads}")
    return "\n".join(lines)


def _use_line(use: Use) -> str:
    return f"  {use.name}" + (" (called)" if "called" in use.how else "")


def _layout_lines(layout: Layout | None) -> list[str]:
    if layout is None:
        return []
    backbone = " or ".join(layout.backbones) or "not recognised"
    add_on = f", add-on {layout.add_on}" if layout.add_on else ""
    lines = [f"architecture: {layout.name}, backbone {backbone}{add_on}"]
    if layout.prototype_shape:
        lines.append(f"prototypes: {list(layout.prototype_shape)}, {layout.num_classes or 'unknown'} classes")
    return lines + [f"note: {note}" for note in layout.notes]


__all__ = ["OURS", "VERDICTS", "Inspection", "Use", "as_json", "as_text", "inspect_checkpoint"]
