"""The pictures that prototype papers show: the model's own coarse map, upsampled.

``upsampling`` is exactly ProtoPNet's (Chen et al. 2019): the similarity map [h, w], or XProtoNet's occurrence map,
resized by OpenCV's bicubic interpolation. It places cell i in the middle of the i-th of w equal strips, which is where
the cell lies only in a network without padding effects. ``upsampling-centred`` places each cell at its *measured*
centre, the centroid of the absolute gradient of the cell with respect to the input.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from protomask.checks import check_count
from protomask.engine import in_chunks
from protomask.errors import ModelError, expected
from protomask.localisers.base import Maps, Request, register, scaled
from protomask.model import Contract


def coarse_maps(model: Contract, images: Tensor) -> Tensor:
    """The model's similarity maps, else its occurrence maps: [B, C, H, W] -> [B, P, h, w].

    Raises:
        ModelError: the model has neither.
    """
    maps = model.similarity_maps(images)
    maps = model.occurrence_maps(images) if maps is None else maps
    if maps is None:
        raise ModelError(expected("model", "similarity_maps or occurrence_maps, which upsampling needs", "neither"))
    if maps.dim() != 4 or maps.shape[:2] != (len(images), model.num_prototypes):
        wanted = f"[{len(images)}, {model.num_prototypes}, h, w]"
        raise ModelError(expected("the model's maps", wanted, list(maps.shape)))
    return maps


@torch.no_grad()
def _own_maps(request: Request) -> Tensor:
    """[N, h, w], each pair's coarse map; every image passes the network once."""
    rows, prototypes = request.targets.images, request.targets.prototypes
    found: list[tuple[Tensor, Tensor]] = []
    needed = rows.unique()

    def work(part: slice) -> tuple[Tensor, Tensor]:
        chosen = needed[part]
        maps = coarse_maps(request.model, request.images[chosen])
        mine = (rows[:, None] == chosen[None]).nonzero()
        return mine[:, 0], maps[mine[:, 1], prototypes[mine[:, 0]]]

    found.extend(in_chunks(len(needed), request.batch, work))
    order = torch.cat([pairs for pairs, _ in found]).argsort()
    return torch.cat([maps for _, maps in found])[order]


@register("upsampling", "The model's own similarity or occurrence map, upsampled as ProtoPNet does (bicubic).")
@dataclass(frozen=True)
class Upsampling:
    """ProtoPNet's picture: ``cv2.resize(similarity, (W, H), interpolation=cv2.INTER_CUBIC)``.

    For XProtoNet, which has no similarity map, the same of its occurrence map (Kim et al. 2021).
    """

    @property
    def passes(self) -> float:
        """No input gradients: one forward pass per image serves all its prototypes."""
        return 0.0

    def __call__(self, request: Request) -> Maps:
        """Maps [N, H, W], each scaled to [0, 1]."""
        height, width = request.size
        coarse = _own_maps(request)
        fine = [
            cv2.resize(m, dsize=(width, height), interpolation=cv2.INTER_CUBIC) for m in coarse.float().cpu().numpy()
        ]
        return Maps(scaled(torch.from_numpy(np.stack(fine)).to(coarse)))


@register("upsampling-centred", "The same map with every cell placed at its measured centre (gradient centroid).")
@dataclass(frozen=True)
class UpsamplingCentred:
    """Bicubic upsampling with measured cell centres.

    Attributes:
        probes: seeded noise images over which the gradient centroids are averaged. Noise, not the images at hand: the
            centres belong to the network, and no image may influence another.
    """

    probes: int = 4

    def __post_init__(self) -> None:
        check_count("probes", self.probes)

    @property
    def passes(self) -> float:
        """None per pair; once per call h + w cells are traced back to the input."""
        return 0.0

    def __call__(self, request: Request) -> Maps:
        """Maps [N, H, W], each scaled to [0, 1]."""
        rows, columns = cell_centres(request.model, request.images[:1], self.probes, request.seed, request.batch)
        coarse = _own_maps(request)
        fine = [place(m, rows, columns, request.size) for m in coarse.float().cpu().numpy()]
        return Maps(scaled(torch.from_numpy(np.stack(fine)).to(coarse)))


def cell_centres(
    model: Contract, like: Tensor, probes: int = 4, seed: int = 0, batch: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Where the cells of the coarse map look: y [h] and x [w] of the gradient centroids, in pixels (0 = first pixel).

    The map of every prototype is summed over a row (a column) of cells and differentiated with respect to seeded noise
    images of the shape of ``like`` [1, C, H, W]; the centroid of the absolute gradient along that axis is the centre.
    A centre is the mean over those of ``probes`` images on which the cells have a gradient, else where a cell of equal
    size would lie. Centres are made non-decreasing, so that they can be interpolated. ``batch``: images in one pass.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((probes, *like.shape[1:]), generator=generator, dtype=torch.float64)

    def work(part: slice) -> tuple[Tensor, Tensor]:
        images = noise[part].to(like).requires_grad_()
        with torch.enable_grad():
            maps = coarse_maps(model, images).sum(1)
            rows = [_centroids(maps[:, i].sum(), images, axis=2) for i in range(maps.shape[1])]
            columns = [_centroids(maps[:, :, j].sum(), images, axis=3) for j in range(maps.shape[2])]
        return torch.stack(rows), torch.stack(columns)

    found = list(in_chunks(probes, batch, work))
    rows, columns = (torch.cat(parts, 1).nanmean(1).cpu().numpy() for parts in zip(*found, strict=True))
    return _placed(rows, like.shape[2]), _placed(columns, like.shape[3])


def _placed(centres: np.ndarray, size: int) -> np.ndarray:
    even = (np.arange(len(centres)) + 0.5) * size / len(centres) - 0.5
    return np.maximum.accumulate(np.where(np.isnan(centres), even, centres))


def _centroids(scalar: Tensor, images: Tensor, axis: int) -> Tensor:
    """[B] float64, the centroid of each image's absolute gradient along an axis; NaN where it has none."""
    gradient = torch.autograd.grad(scalar, images, retain_graph=True)[0].abs().double()
    weight = gradient.sum([d for d in range(1, 4) if d != axis])
    position = torch.arange(weight.shape[1], dtype=weight.dtype, device=weight.device)
    total = weight.sum(1)
    return (weight * position).sum(1) / total


def place(coarse: np.ndarray, rows: np.ndarray, columns: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map [h, w] float32, cells at pixels ``rows`` [h] and ``columns`` [w] -> [H, W]; bicubic, constant outside."""
    y = np.interp(np.arange(size[0]), *_increasing(rows))
    x = np.interp(np.arange(size[1]), *_increasing(columns))
    grid_x, grid_y = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    return cv2.remap(coarse, grid_x, grid_y, interpolation=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _increasing(centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # np.interp wants strictly increasing positions; cells that share a centre are told apart by a hair.
    cells = np.arange(len(centres), dtype=np.float64)
    return centres + 1e-6 * cells, cells
