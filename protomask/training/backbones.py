"""Backbones: torchvision's convolutional layers under upstream ProtoPNet's names, and their weights files.

torchvision and upstream name the layers alike, up to the one level of nesting that is rebuilt here: ResNets lie bare
(``conv1``, ``layer1``, ...), all others under ``features``. ``conv-small`` is our own, for small pictures.

``mobilenet_v2@16`` is a MobileNetV2 that ends early, with the last layer whose output has stride 16: finer cells, each
of which sees less of the image. Every backbone can be cut so, at the strides that its layers have (a ResNet's: stages).
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from protomask.checks import check_choice
from protomask.errors import CheckpointError, InputError, expected

_TORCHVISION = (
    *(f"vgg{depth}{bn}" for depth in (11, 13, 16, 19) for bn in ("", "_bn")),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"densenet{depth}" for depth in (121, 161, 169, 201)),
    "mobilenet_v2",
    "squeezenet1_0",
    "squeezenet1_1",
)
BACKBONES = (*_TORCHVISION, "conv-small")

# (channels, stride) of 3 x 3 convolutions: stride 16 in all, receptive field 123 pixels.
_SMALL = ((16, 2), (32, 1), (32, 2), (48, 1), (64, 2), (64, 1), (96, 2), (96, 1), (96, 1))

# Heads of torchvision's classifiers, which a backbone has no use for.
_HEADS = ("classifier.", "fc.")
_WRAPPERS = ("state_dict", "model")
# DenseNet's oldest files write norm.1 where the layer is called norm1.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")


class Features(nn.Sequential):
    """The convolutional layers of a backbone; [B, 3, H, W] (or [B, 1, H, W]) -> [B, C, h, w]."""

    def __init__(self, name: str, layers: Mapping[str, nn.Module]) -> None:
        super().__init__(OrderedDict(layers))
        self.name = name

    def __repr__(self) -> str:
        return f"{self.name}_features"


def check_backbone(name: str) -> str:
    """``name`` as it came, if it is one of :data:`BACKBONES`, with ``@`` and a stride or without; else InputError.

    Whether the backbone has that stride shows when it is built.
    """
    check_choice("backbone", name.partition("@")[0], BACKBONES)
    return name


def build_features(name: str, channels: int = 3) -> Features:
    """The convolutional layers of one of :data:`BACKBONES`, with torchvision's initial weights.

    ``name@16`` is the backbone up to and including the last layer whose output has stride 16.

    With ``channels=1`` the first convolution takes grey images, and its weights are the sums over the three channels:
    the network computes what the original one does on a grey image in three equal channels.

    Raises:
        InputError: an unknown name, a stride that the backbone does not have, or other channels than 1 or 3.
    """
    check_backbone(name)
    if channels not in (1, 3):
        raise InputError(expected("channels", "1 or 3", channels))
    whole, at, stride = name.partition("@")
    features = _build(whole)
    if at:
        _cut(features, stride)
    if channels == 1:
        _make_grey(features)
    return features


def _build(name: str) -> Features:
    if name == "conv-small":
        return Features(name, {"features": _small()})
    # Imported here: it brings torch's compiler, two seconds that every command would pay.
    from torchvision.models import get_model

    net = get_model(name, weights=None)
    if name.startswith("resnet"):
        return Features(name, {k: m for k, m in net.named_children() if k not in ("avgpool", "fc")})
    if name.startswith("densenet"):
        net.features.add_module("final_relu", nn.ReLU(inplace=True))  # torchvision has it outside, as a function
    return Features(name, {"features": net.features})


def _cut(features: Features, stride: str) -> None:
    """Leave out the layers after the last one whose output has the stride; what is kept keeps its name."""
    layers = features if features.name.startswith("resnet") else features[0]
    strides, reached = {}, 1
    for name, layer in layers.named_children():
        reached *= math.prod(step for _, step, _, _ in _windows(layer))
        strides[name] = reached
    if stride not in map(str, strides.values()):
        some = ", ".join(map(str, sorted(set(strides.values()))))
        wanted = f"{features.name}@ and a stride of {some}"
        raise InputError(expected("backbone", wanted, repr(f"{features.name}@{stride}")))
    for name, reached in strides.items():
        if reached > int(stride):
            delattr(layers, name)
    features.name += f"@{stride}"


def feature_channels(features: nn.Module) -> int:
    """C, the channels of a backbone's output, found by a pass of one small image."""
    modes = [(m, m.training) for m in features.modules()]
    features.eval()
    with torch.no_grad():
        channels = features(torch.zeros(1, _first(features).in_channels, 64, 64)).shape[1]
    for module, mode in modes:
        module.training = mode
    return int(channels)


def receptive_field(features: nn.Module, size: int, kernel: int = 1) -> list[float]:
    """``[n, jump, extent, start]`` of prototypes of ``kernel`` cells, in pixels of an image of ``size`` x ``size``.

    n cells along a side, the distance between their centres, the extent of the receptive field of each, and the centre
    of the first: what upstream keeps as ``proto_layer_rf_info``. Shortcuts and the smaller of two parallel convolutions
    do not widen the field and are left out.
    """
    cells, jump, extent, start = float(size), 1.0, 1.0, 0.5
    for width, stride, padding, ceil in [*_windows(features), (kernel, 1, 0, False)]:
        reach = (cells + 2 * padding - width) / stride
        cells = (-(-reach // 1) if ceil else reach // 1) + 1
        extent += (width - 1) * jump
        start += ((width - 1) / 2 - padding) * jump
        jump *= stride
    return [int(cells), int(jump), int(extent), start]


def has_identity_statistics(features: nn.Module) -> bool:
    """Whether batch norm is there and all of it keeps mean 0 and variance 1, as after folding it into convolutions.

    With loaded weights this says that the network was never meant to be normalised: statistics of a batch would change
    what it computes. A network without weights looks the same, so ask for loaded weights only.
    """
    norms = [m for m in features.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    known = [(m.running_mean, m.running_var) for m in norms if m.running_mean is not None and m.running_var is not None]
    return bool(known) and all(bool((mean == 0).all() and (var == 1).all()) for mean, var in known)


def load_weights(features: nn.Module, path: str | Path) -> None:
    """Fill a backbone from a state dict of the torchvision model: ``torch.save`` or safetensors, any float precision.

    ``{"state_dict": ...}`` and ``{"model": ...}`` around it, a ``module.`` prefix and the classifier's own entries are
    seen through; old files without ``num_batches_tracked`` are taken. For a grey backbone the first convolution of an
    RGB file is summed over its channels (:func:`build_features`). A cut backbone takes the file of the whole one.

    Raises:
        CheckpointError: the file is missing or corrupt, needs code to load, or does not fit the backbone.
    """
    path = Path(path)
    given = {k: v for k, v in _names(_read(path)).items() if not k.startswith(_HEADS)}
    wanted = features.state_dict()
    for name in _left_out(features):
        given.pop(name, None)
    missing = {k for k in wanted.keys() - given.keys() if not k.endswith("num_batches_tracked")}
    for problem, names in (("missing", missing), ("unexpected", given.keys() - wanted.keys())):
        if names:
            some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise CheckpointError(expected(str(path), f"weights of {features!r}", f"{len(names)} {problem}: {some}"))
    first = next(name for name, tensor in wanted.items() if tensor.dim() == 4)
    if wanted[first].shape[1] == 1 and given[first].dim() == 4:
        given[first] = given[first].sum(1, keepdim=True)
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(expected(f"{path}: {name}", f"shape {list(wanted[name].shape)}", list(tensor.shape)))
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(expected(f"{path}: {name}", "finite values", "NaN or infinity"))
    features.load_state_dict({k: v.to(wanted[k].dtype) for k, v in given.items()}, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    wanted = "a state dict of tensors"
    if not path.is_file():
        raise CheckpointError(expected("weights", f"{wanted} at {path}", "no such file"))
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds on corrupt files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(expected(str(path), f"{wanted} that loads without running code", reason)) from error
    for name in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise CheckpointError(expected(str(path), wanted, type(loaded).__name__))
    return {str(k): v for k, v in loaded.items()}


def _names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "module." if state and all(k.startswith("module.") for k in state) else ""
    return {_OLD_DENSENET.sub(r"\1\2.", k[len(prefix) :]): v for k, v in state.items()}


def _left_out(features: nn.Module) -> set[str]:
    """The entries of the whole backbone's state dict that a cut one lacks."""
    if not isinstance(features, Features) or "@" not in features.name:
        return set()
    with torch.device("meta"):
        whole = _build(features.name.partition("@")[0])
    return whole.state_dict().keys() - features.state_dict().keys()


def _first(features: nn.Module) -> nn.Conv2d:
    return next(m for m in features.modules() if isinstance(m, nn.Conv2d))


def _make_grey(features: nn.Module) -> None:
    first = _first(features)
    first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))
    first.in_channels = 1


def _small() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width, stride in _SMALL:
        conv = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers)


def _windows(features: nn.Module) -> list[tuple[int, int, int, bool]]:
    """The windows along the widest path through a network, without shortcuts, in order."""
    layers = [m for name, m in features.named_modules() if "downsample" not in name and "expand1x1" not in name]
    return [_window(m) for m in layers if isinstance(m, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d))]


def _window(layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) -> tuple[int, int, int, bool]:
    """(kernel, stride, padding, whether sizes round up) of a layer with square windows."""
    values = (layer.kernel_size, layer.stride, layer.padding)
    kernel, stride, padding = (int(v[0]) if isinstance(v, tuple) else int(v) for v in values)
    return kernel, stride, padding, bool(getattr(layer, "ceil_mode", False))
