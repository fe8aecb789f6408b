"""The precision of network passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch

from protomask.checks import check_choice

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def full_precision() -> Iterator[None]:
    """A surrounding ``torch.autocast`` is off inside: it is meant for its own passes, and would round our products."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Network passes inside run in ``"bf16"`` or ``"fp16"`` where torch holds that safe; ``"fp32"`` changes nothing.

    Raises:
        InputError: another name.
    """
    check_choice("precision", precision, tuple(PRECISIONS))
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
