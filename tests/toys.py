"""Models small enough that the right answer is known by hand."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protomask.data.sample import Geometry, Sample


class BlockModel:
    """Activation p = mean brightness of block p: the right mask of p is its block, and nothing else matters.

    No base class, no module, no floor of its own but zero: a user's own class as the contract allows it.
    """

    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    activation_range = (0.0, None)

    def __init__(self, blocks: list[tuple[int, int, int, int]], size: int = 32) -> None:
        self.blocks = blocks
        self.num_prototypes = len(blocks)
        self.input_shape = (3, size, size)

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        means = [images[:, :, y0:y1, x0:x1].mean((1, 2, 3)) for x0, y0, x1, y1 in self.blocks]
        values = torch.stack(means, 1)
        return values if prototypes is None else values.gather(1, prototypes[:, None])[:, 0]


def scenes(count: int = 4) -> Tensor:
    """[count, 3, 32, 32]: patches of seeded colours, normalised as ConvModel expects."""
    colours = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(3))[:count]
    return F.interpolate(2 * colours, size=(32, 32), mode="nearest")


class ConvModel(nn.Module):
    """A small convolutional prototype model with batch norm and dropout: mode, buffers and random state matter."""

    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)
    activation_range = (0.0, 1.0)
    input_shape = (3, 32, 32)

    def __init__(self, prototypes: int = 4, classes: int = 2, seed: int = 0) -> None:
        super().__init__()
        self.num_prototypes = prototypes
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 8, 3, 2, 1)
        )
        self.vectors = nn.Parameter(torch.zeros(prototypes, 8))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
            # Pushed, as trained models are: each prototype is what one cell of one scene holds.
            self.eval()
            features = self.body(scenes(prototypes))
            self.train()
            for p in range(prototypes):
                cell = features[p].square().sum(0).argmax()
                self.vectors[p] = features[p].flatten(1)[:, cell]
        self.weights = torch.eye(classes).repeat_interleave(prototypes // classes, 0) * 1.5 - 0.5

    def similarity_maps(self, images: Tensor) -> Tensor:
        features = self.body(images)
        distance = (features[:, None] - self.vectors[None, :, :, None, None]).square().sum(2)
        return torch.exp(-distance / 8)

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        values = F.adaptive_max_pool2d(self.similarity_maps(images), 1).flatten(1)
        return values if prototypes is None else values.gather(1, prototypes[:, None])[:, 0]

    def logits(self, images: Tensor) -> Tensor:
        return self.activations(images) @ self.weights

    def class_weights(self) -> Tensor:
        return self.weights

    def describe(self, prototype: int) -> str:
        return f"class {prototype // 2} / {prototype % 2}"


class ClassedBlocks(BlockModel):
    """A BlockModel whose prototype p speaks for class p."""

    class_names = ("first", "second", "third")

    def class_weights(self) -> Tensor:
        return torch.eye(self.num_prototypes) * 1.5 - 0.5

    def logits(self, images: Tensor) -> Tensor:
        return self.activations(images) @ self.class_weights()


BLOCKS = [(4, 4, 12, 12), (18, 2, 26, 10), (8, 20, 20, 30)]


def block_model() -> ClassedBlocks:
    """The factory that the commands call as ``tests.toys:block_model``."""
    return ClassedBlocks(BLOCKS)


class BlockScenes:
    """Dark noise with a bright square per part; class k is about part k, and each part is one of BlockModel's blocks.

    ``masks`` False leaves points only, as in CUB.
    """

    name = "blocks"
    class_names = ("first", "second", "third")
    part_names = ("a", "b", "c")

    def __init__(self, count: int = 9, *, masks: bool = True) -> None:
        self.count, self.masks = count, masks

    def __len__(self) -> int:
        return self.count

    def _image(self, index: int, without: int | None = None) -> np.ndarray:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 20, (32, 32, 3)).astype(np.uint8)
        for part, (x0, y0, x1, y1) in enumerate(BLOCKS):
            if part != without:
                image[y0:y1, x0:x1] = 200 + rng.integers(0, 40)
        return image

    def __getitem__(self, index: int) -> Sample:
        masks = np.zeros((3, 32, 32), bool)
        for part, (x0, y0, x1, y1) in enumerate(BLOCKS):
            masks[part, y0:y1, x0:x1] = True
        return Sample(
            image_id=f"blocks/{index}",
            image=self._image(index),
            label=index % 3,
            geometry=Geometry((64, 64), (0, 0, 64, 64), (32, 32)),
            box=np.array([4.0, 2.0, 26.0, 30.0]),
            points=np.array([[(x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2] for x0, y0, x1, y1 in BLOCKS]),
            part_masks=masks if self.masks else None,
        )

    def without_part(self, index: int, part: int) -> np.ndarray | None:
        return self._image(index, part)
