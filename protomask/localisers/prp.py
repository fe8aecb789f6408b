"""PRP, prototypical relevance propagation (Gautam et al., Pattern Recognition 2023; arXiv 2108.12204), through Zennit.

The activation is shared out over the features that it is made of, and from there propagated to the pixels by layer-wise
relevance propagation: alpha-1 beta-0 in every convolution, the box rule in the first, batch norm folded away. How the
activation is shared out (:mod:`.prototype_relevance`) depends on how the model compares. Zennit is an optional package
(LGPL): ``pip install '.[lrp]'``.

Relevance propagation must know every layer between the pixels and the features: chains of convolutions, batch norm
right after them, ReLU, sigmoid and pooling, and the blocks of torchvision's ResNets, SqueezeNet and MobileNetV2. In a
MobileNetV2 many a depthwise output is carried by its bias alone, and the relevance that reaches it goes nowhere: what
arrives at the pixels is a few hundredths of the activation, and counts as a ranking only. DenseNet normalises after
joining, where batch norm cannot be folded away; it and any unknown block are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from protomask.checks import check_number
from protomask.errors import ModelError, expected
from protomask.localisers.attribution import BLUR, over_pairs
from protomask.localisers.base import Maps, Request, register, scaled, smoothed
from protomask.localisers.bottleneck import module_of, trace
from protomask.localisers.optional import check_installed
from protomask.localisers.prototype_relevance import Head, find_head
from protomask.model import Contract

_LINEAR = (nn.Conv2d,)
_LEAVES = (
    *_LINEAR,
    *(nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Identity, nn.Dropout, nn.Dropout2d),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
)


@register("prp", "Prototypical relevance propagation: the activation, traced back layer by layer; blurred.")
@dataclass(frozen=True)
class PRP:
    """Layer-wise relevance propagation of a prototype's activation.

    Attributes:
        blur: sigma of the Gaussian blur of the map as a share of the image's shorter side; 0 for none.
    """

    blur: float = BLUR
    passes = 2.0

    def __post_init__(self) -> None:
        check_installed("zennit", "lrp")
        check_number("blur", self.blur, 0, 1)

    def __call__(self, request: Request) -> Maps:
        """Maps [N, H, W], each scaled to [0, 1].

        Raises:
            ModelError: the model compares in another way, or has layers that relevance cannot be propagated through.
        """
        return Maps(scaled(smoothed(self.relevance(request).sum(1).clamp(min=0), self.blur)))

    def relevance(self, request: Request) -> Tensor:
        """[N, C, H, W] relevance of the pixels; of each pair it sums to about its activation, less its floor."""
        model = request.model
        module = module_of(model, "prp")
        head = find_head(model, request.images[:1], request.targets.prototypes[:1])
        first = _check_layers(model, head, request)

        def work(images: Tensor, prototypes: Tensor) -> Tensor:
            with torch.no_grad():
                shares = head.share(images.detach(), prototypes)
            with _rules(model, images, first).context(module):
                features = head.features(images, prototypes)
                return torch.autograd.grad(features, images, shares.to(features))[0]

        return over_pairs(request, request.batch, self.passes, work)


def _rules(model: Contract, images: Tensor, first: str) -> Any:
    """Zennit's composite: which rule stands for which layer, and what is rewritten before.

    Args:
        model: the contract.
        images: [B, C, H, W].
        first: name of the layer that the images go into; Zennit would take the one that was registered first.
    """
    from zennit.composites import LayerMapComposite, MixedComposite, NameMapComposite, layer_map_base
    from zennit.rules import ZBox, ZPlus
    from zennit.torchvision import ResNetCanonizer

    mean, std = (torch.tensor(v, dtype=images.dtype, device=images.device) for v in (model.mean, model.std))
    black, white = (((v - mean) / std).view(1, -1, 1, 1).expand_as(images[:1]) for v in (0, 1))
    # Without biases, which would take relevance that no pixel gets.
    layers = [*layer_map_base(), (_LINEAR, ZPlus(zero_params="bias"))]
    pixels = NameMapComposite([((first,), ZBox(low=black, high=white, zero_params="bias"))])
    return MixedComposite([pixels, LayerMapComposite(layers)], canonizers=[ResNetCanonizer(), _mobile_canonizer()])


def _mobile_canonizer() -> Any:
    """MobileNetV2's sum as a layer of its own, as Zennit rewrites ResNet's."""
    from torchvision.models.mobilenetv2 import InvertedResidual
    from zennit.canonizers import AttributeCanonizer
    from zennit.layer import Sum

    def forward(block: Any, x: Tensor) -> Tensor:
        out = block.conv(x)
        return block.canonizer_sum(torch.stack([x, out], dim=-1)) if block.use_res_connect else out

    def attributes(name: str, module: nn.Module) -> dict[str, object] | None:
        if not isinstance(module, InvertedResidual):
            return None
        return {"forward": forward.__get__(module), "canonizer_sum": Sum()}

    return AttributeCanonizer(attributes)


def _check_layers(model: Contract, head: Head, request: Request) -> str:
    """The name of the first convolution that runs; ModelError unless rules stand for every layer up to the features."""
    module, image = module_of(model, "prp"), request.images[:1]
    with torch.no_grad():
        steps = trace(module, lambda: head.features(image, request.targets.prototypes[:1]))
    names = [s.name for s in steps]
    steps = steps[: names.index(head.name) + 1]
    run = [s.module for s in steps]
    leaves = [m for m in run if next(m.children(), None) is None]
    for step in steps:
        if not _is_known(step.module):
            wanted = "layers that relevance can be propagated through"
            raise ModelError(expected("model.module", wanted, f"{step.name or 'root'}: {type(step.module).__name__}"))
    for norm in (m for m in leaves if isinstance(m, nn.BatchNorm2d)):
        if not _follows_convolution(norm, module):
            wanted = "batch norm right after a convolution, to be folded into it"
            name = names[run.index(norm)]
            raise ModelError(expected("model.module", wanted, f"{name} after another layer"))
    return next((step.name for step in steps if isinstance(step.module, _LINEAR)), "")


@lru_cache(maxsize=1)
def _blocks() -> tuple[type[nn.Module], ...]:
    # Imported here: torchvision brings torch's compiler, two seconds that every command would pay.
    from torchvision.models.mobilenetv2 import InvertedResidual
    from torchvision.models.resnet import BasicBlock, Bottleneck
    from torchvision.models.squeezenet import Fire

    return BasicBlock, Bottleneck, Fire, InvertedResidual


def _is_known(module: nn.Module) -> bool:
    if next(module.children(), None) is None:
        return isinstance(module, _LEAVES)
    return isinstance(module, _blocks()) or type(module).forward is nn.Sequential.forward


def _follows_convolution(norm: nn.Module, module: nn.Module) -> bool:
    leaves: Sequence[nn.Module] = [m for m in module.modules() if next(m.children(), None) is None]
    place = next(k for k, m in enumerate(leaves) if m is norm)
    return place > 0 and isinstance(leaves[place - 1], _LINEAR)
