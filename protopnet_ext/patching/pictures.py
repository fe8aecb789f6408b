"""The files that a push leaves behind, drawn again with another region: names, sizes and formats as they were.

Pictures are float RGB in [0, 1], saved by matplotlib; an overlay is half the picture and three tenths of the map in
OpenCV's jet colours. Axes: H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

_PERCENTILE = 95  # what this code cuts regions at


@dataclass(frozen=True)
class Pictures:
    """The pictures of one push.

    Attributes:
        folder: where they are.
        prefix: what their names have in common; the prototype's index stands after it, or before it.
    """

    folder: Path
    prefix: str | None

    @staticmethod
    def of_call(call: dict[str, Any]) -> Pictures | None:
        """What ``update_prototypes_on_batch`` was told; None where it saves nothing."""
        folder = call.get("dir_for_saving_prototypes")
        return None if folder is None else Pictures(Path(folder), call.get("prototype_img_filename_prefix"))

    def draw(self, prototype: int, picture: Tensor, located: np.ndarray, field_of_view: tuple[int, ...]) -> None:
        """Draw the pictures that are there again.

        Args:
            prototype: its index in the files' names.
            picture: [3, H, W] in [0, 1].
            located: the map [H, W].
            field_of_view: top, bottom, left, right of the nearest cell's receptive field.
        """
        if self.prefix is None:
            return
        whole = picture.permute(1, 2, 0).numpy()
        overlay = overlaid(whole, located)
        self._save("", prototype, _cut(whole, bounds_of(located)))
        self._save("-original_with_self_act", prototype, overlay)
        self._save("-receptive_field_with_self_act", prototype, _cut(overlay, field_of_view))

    def _save(self, kind: str, prototype: int, pixels: np.ndarray) -> None:
        from matplotlib.image import imsave  # here, since every command imports this package, and few draw

        for name in (f"{self.prefix}{kind}{prototype}.png", f"{prototype}{self.prefix}{kind}.png"):
            path = self.folder / name
            if path.is_file():
                imsave(path, np.clip(pixels, 0, 1), vmin=0.0, vmax=1.0)
                return


@dataclass(frozen=True, eq=False)
class Bounds:
    """The file of bounds [P, 5 or 6] int: image, top, bottom, left, right and perhaps class of each prototype.

    Attributes:
        path: the file, or None where none is written.
        rows: its content.
    """

    path: Path | None
    rows: np.ndarray

    @staticmethod
    def of_call(call: dict[str, Any], folder: Path) -> Bounds:
        """The file that ``push_prototypes`` has written."""
        prefix = call.get("proto_bound_boxes_filename_prefix")
        path = None if prefix is None else folder / f"{prefix}{call.get('epoch_number')}.npy"
        if path is None or not path.is_file():
            return Bounds(None, np.zeros((0, 6), dtype=np.int64))
        return Bounds(path, np.load(path))

    def set(self, prototype: int, bounds: tuple[int, ...]) -> None:
        """Columns 1 to 4 of one prototype."""
        if self.path is not None:
            self.rows[prototype, 1:5] = bounds

    def save(self) -> None:
        """Write the file again."""
        if self.path is not None:
            np.save(self.path, self.rows)


def bounds_of(located: np.ndarray) -> tuple[int, int, int, int]:
    """(top, bottom, left, right), exclusive ends, of the pixels at or above the map's percentile."""
    rows, columns = np.nonzero(located >= np.percentile(located, _PERCENTILE))
    return int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1


def _cut(picture: np.ndarray, bounds: tuple[int, ...]) -> np.ndarray:
    top, bottom, left, right = bounds
    return picture[top:bottom, left:right]


def overlaid(picture: np.ndarray, located: np.ndarray) -> np.ndarray:
    """The picture [H, W, 3] in [0, 1] under its map [H, W] in jet colours."""
    span = located - located.min()
    jet = cv2.applyColorMap((255 * span / span.max()).astype(np.uint8), cv2.COLORMAP_JET)
    colours = np.asarray(jet)[..., ::-1].astype(np.float32) / 255
    return np.asarray(0.5 * picture + 0.3 * colours)
