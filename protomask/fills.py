"""Fills: what stands in for the pixels that a mask removes.

Each fill is a function of one image alone. Colours are given in [0, 1] and normalised by the model's mean and std, so
that a fill is a valid model-ready image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from protomask.blur import gaussian_blur
from protomask.checks import check_choice
from protomask.errors import ModelError, expected

SCORING_FILL = "mean"


def _blur(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The image blurred with a Gaussian of sigma = a tenth of its shorter side: colours stay, parts vanish."""
    return gaussian_blur(images, min(images.shape[-2:]) / 10, repeatable=False)


def _image_mean(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Every pixel the mean colour of its image."""
    return images.mean((-2, -1), keepdim=True).expand_as(images)


def _mean(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Every pixel the mean colour of the training data: zero after normalisation."""
    return torch.zeros_like(images)


def _constant(value: float) -> Callable[[Tensor, Sequence[float], Sequence[float]], Tensor]:
    def fill(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        for name, values in (("model.mean", mean), ("model.std", std)):
            if len(values) not in (1, images.shape[1]):
                wanted = f"{images.shape[1]} values, one per channel of the images"
                raise ModelError(expected(name, wanted, len(values)))
        centre, spread = (torch.as_tensor(v, dtype=images.dtype, device=images.device) for v in (mean, std))
        colour = (value - centre) / spread
        return colour.view(1, -1, 1, 1).expand_as(images)

    return fill


FILLS: dict[str, Callable[[Tensor, Sequence[float], Sequence[float]], Tensor]] = {
    "blur": _blur,
    "image-mean": _image_mean,
    "mean": _mean,
    "black": _constant(0.0),
    "grey": _constant(0.5),
}


def fill_images(name: str, images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """What stands in for removed pixels: [B, C, H, W] model-ready -> [B, C, H, W], each image's own.

    Args:
        name: ``"blur"`` (sigma = shorter side / 10), ``"image-mean"``, ``"mean"`` (zero after normalisation: the
            scoring fill), ``"black"`` or ``"grey"``.
        images: [B, C, H, W], model-ready.
        mean: per channel, what the images were normalised by.
        std: likewise.

    Raises:
        InputError: an unknown name.
        ModelError: ``"black"`` and ``"grey"`` need a mean and a std of every channel, and there is another number.
    """
    check_choice("fill", name, tuple(FILLS))
    return FILLS[name](images, mean, std)
