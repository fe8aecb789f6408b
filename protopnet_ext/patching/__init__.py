"""``protopnet_ext.patch``: ProtoPNet code bases as they are, drawing MDM's regions in the files they always wrote. ::

    import protopnet_ext
    protopnet_ext.patch()              # one line at the top of push-, analysis- or training code, or: with patch(): ...

What is patched, wherever it is imported from and whether it is imported before or after:

- ``push_prototypes``: runs as it is; then each prototype is located once in the image that it was pushed to, and
  columns 1 to 4 of the bounds file, the prototype's picture and the self-activation overlays are drawn again.
- ``find_k_nearest_patches_to_prototypes``: the maps of the patches that it keeps.
- anything else that upsamples a similarity map with ``cv2.resize``, such as ``local_analysis.py``: the map is
  recognised by its content among those of the batches that the model saw last, and the located map is returned instead.

Prototype vectors, accuracies and logs are not touched: locating leaves the random state, the model's mode, its
gradients and its flags as they were, and calls none of the model's hooks unless its maps are others without them. A map
that is not recognised, a model whose logits the adapter cannot reproduce, whatever fails while it is located, and a
prototype with nothing to locate keep what the code itself draws; the report counts them with the reason. Functions of
these names with other arguments are left as they are, and noted.

Descendants that :func:`protopnet_ext.wrap` reads are patched alike: TesNet and ST-ProtoPNet whole, EvalProtoPNet and
ProtoPool where they upsample. CaBRNet's registry of attribution functions gets an entry under the method's name
(``attribution: {type: mdm}``; ``protomask-smoothgrad`` where it has a ``smoothgrad`` of its own).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from protomask.checks import check_count
from protomask.locating import resolve_method
from protomask.patching import Patch, Replacements, Say, Tally, to_stderr

from .hooks import install
from .session import Session

_FAMILY = "protopnet_ext"


def patch(
    method: str = "mdm",
    *,
    seed: int = 0,
    batch: int = 32,
    remember: int = 4,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    say: Say | None = to_stderr,
    **settings: Any,
) -> Patch:
    """Patch ProtoPNet code, and what descends from it, until the handle's ``undo`` or the end of a ``with`` block.

    Args:
        method: a localiser's name (``protomask methods`` lists them).
        seed: of whatever the method draws.
        batch: images in one network pass.
        remember: how many of the last batches are kept, in which a map that is drawn can be recognised.
        mean, std: per channel, what the code normalises images by; by default the model's own attributes, else
            ImageNet's for RGB, and 0 and 1 for other images, which the report then says.
        say: is given one line on undo that tells what was found and replaced; standard error by default, None for
            silence.
        **settings: the method's, such as ``steps=25``.

    Raises:
        InputError: unknown method or setting, numbers that are none, or a patch of this package is in place already.
    """
    Patch.refuse_second(_FAMILY)
    resolve_method(method, settings)
    tally = Tally(f"{_FAMILY}.patch({method})")
    options = {"method": method, "seed": seed, "batch": check_count("batch", batch), **settings}
    session = Session(options, check_count("remember", remember), tally, mean=mean, std=std)
    replacements = Replacements()
    try:
        install(replacements, session)
    except BaseException:
        replacements.undo()
        raise
    return Patch(_FAMILY, replacements, tally, say)


__all__ = ["patch"]
