"""Stand-in for ProtoASNet's helpers for explanations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def get_src(src_imgs: np.ndarray, m: float = 0.099, std: float = 0.171) -> tuple[np.ndarray, Any]:
    pictures = np.moveaxis(src_imgs * std + m, 1, -1)
    return pictures, torch.nn.Upsample(size=pictures.shape[1:-1], mode="bilinear")


def get_normalized_upsample_occurence_maps(occurrence_maps: np.ndarray, upsampler: Any) -> np.ndarray:
    maps = upsampler(torch.from_numpy(occurrence_maps).float()).squeeze().numpy()
    span = maps - maps.min((1, 2), keepdims=True)
    result: np.ndarray = span / (span.max((1, 2), keepdims=True) + 1e-7)
    return result
