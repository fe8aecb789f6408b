"""CaBRNet: an attribution function in its registry, so that its configuration files can name the method. ::

    attribution:
      type: mdm

An attribution function is called with the model, the picture, the image tensor [1, C, H, W], a prototype's index, the
device, and where asked a location: a cell of the similarity map, or ``"max"``. It gives a map of the picture's size.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from protomask.patching import Replacements
from protopnet_ext.cabrnet import wrap

from .session import Session

REGISTRY = "SUPPORTED_ATTRIBUTION_FUNCTIONS"
PLACE = "attributions"


def see(replacements: Replacements, session: Session, module: ModuleType) -> None:
    """Add the method to a module's registry, once; under another name where the registry has one of that name."""
    registry = vars(module).get(REGISTRY)
    if not isinstance(registry, dict) or any(getattr(value, "session", None) is session for value in registry.values()):
        return
    place, method = f"{module.__name__}.{REGISTRY}", session.options["method"]
    name = method if method not in registry else f"protomask-{method}"
    if name in registry:
        session.tally.note(f"{place} is left as it is: it has {method} and {name}")
        return
    if name != method:
        session.tally.note(f"{place} has a {method} of its own: ours is {name}")
    session.tally.found[place] = None
    located = _attribution(session)
    located.session = session  # type: ignore[attr-defined]
    replacements.add_item(registry, name, located)


def _attribution(session: Session) -> Callable[..., np.ndarray]:
    def located(
        model: nn.Module,
        img: Any,
        img_tensor: Tensor,
        proto_idx: int,
        device: str | torch.device,
        location: tuple[int, int] | str | None = None,
        **_: Any,
    ) -> np.ndarray:
        """The located map [H, W] float32 in [0, 1], in the picture's size; raises ModelError for another model."""
        images = (img_tensor if img_tensor.dim() == 4 else img_tensor[None]).to(device)
        model.to(device)
        cell = None if location is None or isinstance(location, str) else (int(location[0]), int(location[1]))
        shape = tuple(images.shape[1:])
        adapter = wrap(model, input_shape=shape, cell=cell, **session.statistics(model, shape[0]))
        found = session.locate_in(adapter, model, images, [(0, proto_idx)])[0]
        reason = found if isinstance(found, str) else ""
        session.tally.draw(PLACE, reason)
        whole = np.ones((img.height, img.width), dtype=np.float32)  # nothing to locate: every pixel is as good
        if isinstance(found, str):
            return whole
        map_ = cv2.resize(found.astype(np.float32), (img.width, img.height), interpolation=cv2.INTER_LINEAR)
        return np.clip(map_, 0, 1)

    return located
