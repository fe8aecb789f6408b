"""How many images fit into one network pass."""

from __future__ import annotations

import torch
from torch import Tensor

from protomask.checks import check_choice, check_count
from protomask.errors import InputError, ResourceError, expected
from protomask.model import Contract, device_of, untouched

DEFAULT_BATCH = 32
LARGEST_BATCH = 512
SHARE = 0.8  # of the memory that is free; the rest is for whoever else allocates meanwhile
BLENDING = 10  # copies of an image that the engine keeps or makes beside the pass: image, fill, blend, gradient
TRANSIENT = 3  # times the largest tensor of a pass: what the gradient of one layer needs beside what is kept


def choose_batch(model: Contract, images: Tensor, batch: int | str = "auto", memory: int | None = None) -> int:
    """Images in one network pass with gradients.

    Args:
        model: the contract.
        images: [B, C, H, W], at least one, of the size that will be passed.
        batch: a number, which stands unless ``memory`` allows less; or ``"auto"``: 32 on a CPU, where larger batches
            are no faster, and up to 512 on a GPU, as many as fit.
        memory: bytes that a pass may take, the network's weights not counted; by default four fifths of what is free
            on a GPU, and no limit on a CPU.

    Returns:
        At least 1.

    Raises:
        InputError: neither a number of at least 1 nor ``"auto"``, or a limit below 1 byte.
        ResourceError: one image alone takes more than ``memory``.
    """
    check_batch(batch)
    device = device_of(model)
    stated = None if isinstance(batch, str) else int(batch)
    wanted = stated if stated is not None else LARGEST_BATCH if device.type == "cuda" else DEFAULT_BATCH
    if memory is None and (device.type != "cuda" or stated is not None):
        return wanted
    limit = int(torch.cuda.mem_get_info(device)[0] * SHARE) if memory is None else check_count("memory", memory)
    each = bytes_per_image(model, images)
    if memory is not None and each > limit:
        size = " x ".join(str(n) for n in images.shape[1:])
        raise ResourceError(expected("memory", f"at least {each} bytes, what one image of {size} takes", memory))
    return max(1, min(wanted, limit // each))


def check_batch(batch: int | str) -> None:
    """InputError unless ``batch`` is a number of at least 1 or ``"auto"``."""
    if isinstance(batch, str):
        check_choice("batch", batch, ("auto",))
    else:
        check_count("batch", batch)


def bytes_per_image(model: Contract, images: Tensor) -> int:
    """What one image of a pass with input gradients takes: what autograd keeps, and working copies.

    Counted by autograd's own hooks in a pass of two images, minus a pass of one, so that what does not grow with the
    batch is left out.

    Args:
        model: the contract; it comes back as it was.
        images: [B, C, H, W], at least one.
    """
    if len(images) < 1:
        raise InputError(expected("images", "at least one image", "none"))
    device = device_of(model)
    with untouched(model.module):
        (one, _), (two, most) = (_kept(model, images[:1].repeat(n, 1, 1, 1).to(device)) for n in (1, 2))
    image = images[0].numel() * images.element_size()
    return max(image, two - one) + TRANSIENT * most // 2 + BLENDING * image


def _kept(model: Contract, images: Tensor) -> tuple[int, int]:
    """Bytes that autograd keeps for a pass, parameters left out, and the largest tensor among them."""
    seen: dict[int, int] = {}
    known = {p.untyped_storage().data_ptr() for p in model.module.parameters()} if model.module is not None else set()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    leaf = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    prototypes = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        activations = model.activations(leaf, prototypes)
    del activations
    return sum(seen.values()), max(seen.values(), default=0)
