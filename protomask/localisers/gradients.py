"""Gradients of the activation with respect to the pixels, through Captum.

``saliency`` is the gradient's size (Simonyan, Vedaldi, Zisserman 2014), ``smoothgrad`` its mean over noisy copies times
the image (Smilkov et al. 2017), ``integrated-gradients`` its integral from a blank image to this one (Sundararajan,
Taly, Yan 2017). All are blurred in the end. A prototype that was pushed has no gradient at all on the very patch that
it was taken from, where its distance is zero: only noise or a path reaches past that. What is left there is rounding,
and is shown as an empty map.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from protomask.checks import check_choice, check_count, check_number
from protomask.engine import halving
from protomask.fills import FILLS, fill_images
from protomask.folding import quick
from protomask.localisers.attribution import Gradients, activation_of, over_pairs, ranges
from protomask.localisers.base import Maps, Request, register
from protomask.localisers.evidence import mean_gradients
from protomask.model import Contract


@register("saliency", "The size of the activation's gradient at each pixel, its largest channel; blurred.")
@dataclass(frozen=True)
class Saliency(Gradients):
    """max over channels of \\|gradient\\|; the settings are those of :class:`Gradients`."""

    passes = 1.0

    def __call__(self, request: Request) -> Maps:
        """Maps [N, H, W], each scaled to [0, 1]."""
        from captum.attr import Saliency as Method

        method = Method(activation_of(request.model))

        def work(images: Tensor, prototypes: Tensor) -> Tensor:
            return method.attribute(images, additional_forward_args=(prototypes,)).amax(1)

        values = over_pairs(request, request.batch, self.passes, work)
        return self._maps(request, values, values.sum((1, 2)) * ranges(request.images)[request.targets.images])


@register("smoothgrad", "The gradient's mean over 25 noisy copies of the image, times the image; blurred.")
@dataclass(frozen=True)
class SmoothGrad(Gradients):
    """\\|mean gradient x input\\|, summed over channels before the size is taken, then blurred: the strong form.

    The mean of \\|gradient\\|, and what libraries call SmoothGrad without another word, is weaker. The noise depends on
    the seed and the image's shape alone: every pair sees the same, in any company.

    Attributes:
        samples: noisy copies, one pass each.
        noise: standard deviation of the noise as a share of each image's own range of values.
    """

    samples: int = 25
    noise: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("samples", self.samples)
        check_number("noise", self.noise, 0, open_low=True)

    @property
    def passes(self) -> float:
        """Forward + input-gradient passes per pair."""
        return float(self.samples)

    def __call__(self, request: Request) -> Maps:
        """Maps [N, H, W], each scaled to [0, 1]."""
        own = request.images[request.targets.images]
        products = (self._mean_gradients(request) * own).sum(1).abs()
        return self._maps(request, products, products.sum((1, 2)))

    def _mean_gradients(self, request: Request) -> Tensor:
        """[N, C, H, W], by Captum."""
        from captum.attr import Saliency as Method

        def gradient(model: Contract, images: Tensor, prototypes: Tensor) -> Tensor:
            method = Method(activation_of(model))
            found: Tensor = method.attribute(images, abs=False, additional_forward_args=(prototypes,))
            return found

        return mean_gradients(request, self.samples, self.noise, gradient)


@register("integrated-gradients", "The gradient's mean on the way from a blank image, times the way; blurred.")
@dataclass(frozen=True)
class IntegratedGradients(Gradients):
    """\\|integrated gradients\\|, summed over channels before the size is taken, then blurred.

    Attributes:
        steps: points on the way (Gauss-Legendre), one pass each.
        baseline: where the way begins, one of the fills; the paper takes a black image, which is not
            neutral for dark parts: of 24 planted birds the mean colour of the image hits all, black half.
    """

    steps: int = 25
    baseline: str = "image-mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)
        check_choice("baseline", self.baseline, tuple(FILLS))

    @property
    def passes(self) -> float:
        """Forward + input-gradient passes per pair."""
        return float(self.steps)

    def __call__(self, request: Request) -> Maps:
        """Maps [N, H, W], each scaled to [0, 1]."""
        values = self.attributions(request).sum(1).abs()
        return self._maps(request, values, values.sum((1, 2)), self.baseline)

    def attributions(self, request: Request) -> Tensor:
        """[N, C, H, W], the signed attributions; of each pair they sum to a(image) - a(baseline) in the limit."""
        from captum.attr import IntegratedGradients as Method

        model = quick(request.model, request.images)
        method = Method(activation_of(model))

        def work(images: Tensor, prototypes: Tensor) -> Tensor:
            def attribute(rows: int) -> Tensor:
                found: Tensor = method.attribute(
                    images,
                    baselines=fill_images(self.baseline, images.detach(), model.mean, model.std),
                    additional_forward_args=(prototypes,),
                    n_steps=self.steps,
                    method="gausslegendre",
                    internal_batch_size=rows,
                )
                return found

            # Several pairs are halved by whoever asks; the points of a single one are passed by and by.
            rows = max(request.batch, len(images))
            return halving(rows, attribute) if len(images) == 1 else attribute(rows)

        return over_pairs(request, request.batch // self.steps, self.steps, work)
