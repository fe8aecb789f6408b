"""Stand-in for a ProtoPNet repository's helpers, written from what they are called with and what they give."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def makedir(path: str) -> None:
    Path(path).mkdir(parents=True, exist_ok=True)


def find_high_activation_crop(activation_map: np.ndarray, percentile: float = 95) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the pixels at or above the percentile."""
    rows, columns = np.nonzero(activation_map >= np.percentile(activation_map, percentile))
    return int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1


def heat(picture: np.ndarray, upsampled: np.ndarray) -> np.ndarray:
    """The picture under its map."""
    import cv2

    span = upsampled - upsampled.min()
    colours = cv2.applyColorMap(np.uint8(255 * (span / span.max())), cv2.COLORMAP_JET)
    return 0.5 * picture + 0.3 * np.float32(colours)[..., ::-1] / 255
