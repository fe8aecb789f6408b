"""The last feature map before the prototypes, found in any model by what it does.

A model's modules are watched in one pass of one image. The layer is the last module, in the order in which modules end,
whose output is a feature map [B, C, h, w] with more than one cell, is not itself the prototypes' map (C differs from
their number), and that everything goes through: with its output cut off from the graph, the activation has no gradient
with respect to the image. In a ProtoPNet that is the add-on layers, in an XProtoNet the backbone, since the occurrence
module and the add-on layers both read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from protomask.errors import InputError, ModelError, expected
from protomask.model import Contract


@dataclass(frozen=True, eq=False)
class Step:
    """One module of a pass whose output is a single tensor.

    Attributes:
        name: dotted, within the model's module.
        module: itself.
        output: what it gave.
    """

    name: str
    module: nn.Module
    output: Tensor


def trace(module: nn.Module, work: Callable[[], object]) -> list[Step]:
    """The modules that ``work`` runs, in the order in which they end; a module that runs twice is there twice.

    Those whose output is no tensor are left out.
    """
    steps: list[Step] = []
    names = {m: name for name, m in module.named_modules()}

    def watch(m: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            steps.append(Step(names[m], m, output))

    handles = [m.register_forward_hook(watch) for m in names]
    try:
        work()
    finally:
        for handle in handles:
            handle.remove()
    return steps


@contextmanager
def replaced_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the module's output passes through ``change``."""
    handle = module.register_forward_hook(lambda m, inputs, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def module_of(model: Contract, name: str) -> nn.Module:
    """The model's module.

    Raises:
        ModelError: it has none; ``name`` is the method that needs it.
    """
    if model.module is None:
        raise ModelError(expected("model.module", f"an nn.Module, whose layers {name} looks at", None))
    return model.module


def feature_layer(model: Contract, image: Tensor, prototype: Tensor) -> tuple[str, nn.Module]:
    """The layer that the module's description tells, by name and itself.

    Args:
        model: frozen, in evaluation mode.
        image: [1, C, H, W], any.
        prototype: [1] int64, any.

    Raises:
        ModelError: there is no such layer.
    """
    module = module_of(model, "gradcam")
    images = image.detach().clone().requires_grad_()
    with torch.enable_grad():
        steps = trace(module, lambda: model.activations(images, prototype))
        runs = [step.module for step in steps]
        maps = [s for s in steps if _is_feature_map(s.output, model.num_prototypes) and runs.count(s.module) == 1]
        for step in reversed(maps):
            if step.module is not module and _carries_everything(model, step.module, images, prototype):
                return step.name, step.module
    wanted = "a module whose output [B, C, h, w] carries all that the prototypes see"
    raise ModelError(expected("model.module", wanted, f"none of {len(steps)} that run"))


def chosen_layer(model: Contract, name: str) -> nn.Module:
    """The submodule of that dotted name.

    Raises:
        InputError: there is none.
    """
    modules = dict(module_of(model, "gradcam").named_modules())
    if name not in modules:
        raise InputError(expected("layer", "the dotted name of one of the model's modules", repr(name)))
    return modules[name]


def _is_feature_map(output: Tensor, prototypes: int) -> bool:
    if output.dim() != 4 or len(output) != 1 or not output.requires_grad:
        return False
    return output.shape[1] != prototypes and output.shape[2] * output.shape[3] > 1


def _carries_everything(model: Contract, layer: nn.Module, images: Tensor, prototype: Tensor) -> bool:
    with replaced_output(layer, Tensor.detach):
        # The source's own: the contract refuses activations without a gradient, which is what is looked for here.
        activation = model.source.activations(images, prototype).sum()
    if not activation.requires_grad:
        return True
    return torch.autograd.grad(activation, images, allow_unused=True)[0] is None
