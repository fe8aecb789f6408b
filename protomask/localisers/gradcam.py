"""Grad-CAM (Selvaraju et al., ICCV 2017) of a prototype's activation, through Captum.

``relu(sum_k w_k A_k)`` with A the feature map of a layer and w_k the mean over its cells of the activation's gradient
with respect to channel k. The layer is the last feature map before the prototypes (:mod:`.bottleneck` says how it is
found), or one that the user names. In a ProtoPNet only the winning cell has a gradient there, and channels count by how
far they are from the prototype, not by how near: do not expect more of it than of the similarity map. Like that map it
is coarse, and upsampled (bilinear, as Captum does).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from protomask.localisers.attribution import activation_of, over_pairs, without_rounding
from protomask.localisers.base import Maps, Request, register, scaled
from protomask.localisers.bottleneck import chosen_layer, feature_layer
from protomask.localisers.optional import check_installed


@register("gradcam", "Channels of the last feature map before the prototypes, weighted by their mean gradient.")
@dataclass(frozen=True)
class GradCAM:
    """Grad-CAM.

    Attributes:
        layer: dotted name of a submodule of the model's module; empty for the last feature map before the prototypes.
    """

    layer: str = ""
    passes = 1.0

    def __post_init__(self) -> None:
        check_installed("captum", "captum")

    def __call__(self, request: Request) -> Maps:
        """Maps [N, H, W], each scaled to [0, 1].

        Raises:
            ModelError: the model has no module, or none of its layers is the one looked for.
            InputError: no layer of that name.
        """
        maps = F.interpolate(self.coarse(request), size=request.size, mode="bilinear", align_corners=False)
        return Maps(scaled(maps[:, 0]))

    def coarse(self, request: Request) -> Tensor:
        """[N, 1, h, w] >= 0, the maps before they are upsampled."""
        from captum.attr import LayerGradCam

        model = request.model
        if self.layer:
            layer = chosen_layer(model, self.layer)
        else:
            layer = feature_layer(model, request.images[:1], request.targets.prototypes[:1])[1]
        method = LayerGradCam(activation_of(model), layer)

        def work(images: Tensor, prototypes: Tensor) -> Tensor:
            found = method.attribute(images, additional_forward_args=(prototypes,), relu_attributions=True)
            if len(found) == len(images):
                return found
            # The adapter passed the batch in parts, of which Captum saw the last one only.
            return torch.cat([work(images[k : k + 1], prototypes[k : k + 1]) for k in range(len(images))])

        maps = over_pairs(request, request.batch, self.passes, work)
        return without_rounding(request, maps, maps.sum((1, 2, 3)))
