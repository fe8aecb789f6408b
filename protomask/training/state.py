"""``train-state.pt``: where a training run stands, so that the same command goes on from there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from protomask.errors import CheckpointError, InputError, ResourceError, expected
from protomask.files import write_with
from protomask.training.batches import Pictures

STATE = "train-state.pt"
_FORMAT = 1
_PIXELS = ("training pixels", "test pixels")
# What states of earlier versions do not tell: there is nothing to compare, and such a run goes on.
_ADDED = (*_PIXELS, "test images", "window")
_DECODING = 2.0  # grey levels, by which the means of decoded and resized images may differ from machine to machine


def fingerprint(pictures: Pictures) -> str:
    """A short hash of the samples' names and labels, which tells one training set from another."""
    text = "\n".join(f"{i}\t{k}" for i, k in zip(pictures.image_ids, pictures.labels, strict=True))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def pixel_means(pictures: Pictures) -> list[float]:
    """Mean grey levels of 4 x 4 cells of the first, the middle and the last image, 48 numbers in 0 .. 255.

    They tell data apart whose names are the same, and not one build of an image library from another.
    """
    chosen = [pictures.read(index) for index in (0, len(pictures) // 2, len(pictures) - 1)]
    cells = [cell for image in chosen for rows in np.array_split(image, 4) for cell in np.array_split(rows, 4, axis=1)]
    return [round(float(cell.mean()), 2) if cell.size else 0.0 for cell in cells]


def file_digest(path: str | Path) -> str:
    """A short hash of a file's content.

    Raises:
        CheckpointError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(expected("weights", f"a readable file at {path}", error)) from error
    return digest.hexdigest()[:16]


def save_state(folder: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write the state in one step, so that an interruption leaves the one before.

    Raises:
        ResourceError: it cannot be written.
    """
    content = {"format": _FORMAT, "identity": dict(identity), **state}
    try:
        write_with(folder / STATE, lambda path: torch.save(content, path))
    except RuntimeError as error:  # what torch.save raises on a full disk
        raise ResourceError(expected(str(folder / STATE), "a file that can be written", error)) from error


def load_state(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state in ``folder``, or None where there is none. Loading runs no code.

    Raises:
        CheckpointError: the file is no state of ours.
        InputError: it belongs to a run with other settings or data.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        known = state["identity"] if state["format"] == _FORMAT else None
    except Exception as error:  # torch.load raises many kinds on corrupt files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(expected(str(path), "the state of a training run", reason)) from error
    if known is None:
        raise CheckpointError(expected(f"{path}: format", str(_FORMAT), state["format"]))
    for name in {**known, **identity}:
        if name in _ADDED and name not in known:
            continue
        if not _alike(name, known.get(name), identity.get(name)):
            told = name not in _PIXELS  # whose numbers tell nobody anything
            wanted = f"{known.get(name)!r}, as" if told else "those that"
            came = repr(identity.get(name)) if told else "others under the same names"
            raise InputError(expected(name, f"{wanted} the run in {folder} began with (or another folder)", came))
    return state


def _alike(name: str, known: Any, now: Any) -> bool:
    if name in _PIXELS and isinstance(known, list) and len(known) == len(now):
        return max(abs(a - b) for a, b in zip(known, now, strict=True)) <= _DECODING
    return bool(known == now)
