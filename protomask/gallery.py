"""Pictures of what was located: the step from records to :mod:`protomask.visualise`.

A *panel* is one (image, prototype) pair under several methods; *looks like* sets an image's regions beside the training
images that the prototypes were taken from; a *bank* is a class's prototypes with their nearest patches. All are drawn
at the aspect of the original image, whatever the shape of the model's input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from protomask.data import Dataset, Sample
from protomask.engine import in_chunks
from protomask.loading import Loaded
from protomask.locating import locate
from protomask.metrics import METRICS, Truth
from protomask.model import class_prototypes, untouched
from protomask.pairs import tensors
from protomask.records import Localisation
from protomask.region import regions_of, rule_of
from protomask.visualise.figures import (
    BankRow,
    Contrast,
    Likeness,
    Patch,
    View,
    looks_like,
    method_panel,
    prototype_bank,
)
from protomask.visualise.view import stretched

CAPTIONS = {"pointing-game": "hit", "iou-best": "IoU", "energy": "energy", "insertion-30": "ins", "deletion-30": "del"}
MOST_STRETCHED = 4


def view_of(
    sample: Sample,
    found: Localisation,
    row: int,
    *,
    map_: bool = True,
    caption: str = "",
    region: str = "percentile",
) -> View:
    """One located pair on its image: map, region, box and peak; the bare image where nothing was located.

    Args:
        sample: the image.
        found: N pairs, one of them on this image.
        row: which pair.
        map_: whether the map is laid over the image.
        caption: for below the picture; without one, why nothing was located.
        region: what a region is cut by, one of :data:`protomask.region.REGIONS`, as the boxes of ``found`` were.
    """
    if not bool(found.located[row]):
        return View(sample.image, caption=caption or found.reasons[row])
    return View(
        sample.image,
        map=found.maps[row].numpy() if map_ else None,
        region=_region(found, row, region),
        box=found.boxes[row].numpy(),
        peak=found.peaks[row].numpy(),
        caption=caption,
    )


def shown_size(sample: Sample) -> tuple[int, int]:
    """(height, width) in pixels at which a sample has its original's aspect again, which resizing took from it.

    Never smaller than the sample, and no side more than :data:`MOST_STRETCHED` times as long as it was.
    """
    height, width = sample.image.shape[:2]
    x0, y0, x1, y1 = sample.geometry.crop
    stretch = abs((x1 - x0) / (y1 - y0)) * height / width  # of the width
    if stretch >= 1:
        return height, round(width * min(stretch, MOST_STRETCHED))
    return round(height * min(1 / stretch, MOST_STRETCHED)), width


def _region(found: Localisation, row: int, kind: str) -> np.ndarray:
    """[H, W] bool; only a mask's sum is an area, other maps are cut by the percentile, as in files and boxes."""
    return regions_of(found.maps[row : row + 1], rule_of(kind, found.masks))[0].numpy()


def panel(
    loaded: Loaded,
    sample: Sample,
    found: Mapping[str, Localisation],
    row: int,
    *,
    annotation: np.ndarray | None = None,
    scores: Mapping[str, Mapping[str, float | None]] | None = None,
    region: str = "percentile",
) -> Figure:
    """One (image, prototype) pair under several methods.

    Args:
        loaded: names the prototype.
        sample: the image.
        found: method -> localisations of the same pairs.
        row: which pair.
        annotation: [H, W] bool, outlined on every picture.
        scores: method -> short name -> value, for the captions.
        region: what a region is cut by, as in :func:`view_of`.
    """
    first = next(iter(found.values()))
    prototype = int(first.targets.prototypes[row])
    activation = float(first.activations_before[row])
    shown = {m: f for m, f in found.items() if bool(f.located[row])}
    maps = {m: f.maps[row].numpy() for m, f in found.items()}
    return method_panel(
        sample.image,
        maps,
        {m: f.boxes[row].numpy() for m, f in shown.items()},
        title=f"{loaded.model.describe(prototype)}, activation {activation:.2f}",
        regions={m: _region(f, row, region) for m, f in shown.items()},
        peaks={m: f.peaks[row].numpy() for m, f in shown.items()},
        annotation=annotation,
        scores=scores,
        notes={m: f.reasons[row] for m, f in found.items() if f.reasons[row]},
        columns=4,
        size=shown_size(sample),
    )


def panel_scores(values: Mapping[str, Mapping[str, np.ndarray]], row: int) -> dict[str, dict[str, float | None]]:
    """The captions of a panel: the few scores that a picture can be checked against, by their short names."""
    return {
        method: {
            short: float(scores[name][row])
            for name, short in CAPTIONS.items()
            if name in scores and name in METRICS and np.isfinite(scores[name][row])
        }
        for method, scores in values.items()
    }


def annotation_of(truth: Truth, row: int) -> np.ndarray | None:
    """The annotated region [H, W] of a pair, None where there is none."""
    if truth.regions is None or not bool(truth.regions[row].any()):
        return None
    return truth.regions[row].numpy()


def likeness(
    loaded: Loaded,
    sample: Sample,
    found: Localisation,
    rows: Sequence[int],
    *,
    region: str = "percentile",
    count: int | None = None,
) -> Figure | None:
    """This looks like that, for one image: its located prototypes beside the training images they were taken from.

    The weights are those for the class that the model predicts (the sample's own where the model gives no logits). None
    where the model holds no source images or no class weights.

    Args:
        loaded: the model.
        sample: the image.
        found: N pairs.
        rows: which of them, all on this image, in the order shown.
        region: what a region is cut by, as in :func:`view_of`.
        count: how many prototypes they were chosen from, said below them; None where they are all.
    """
    weights = loaded.model.class_weights()
    sources = [loaded.source(int(found.targets.prototypes[row])) for row in rows]
    if weights is None or any(source is None for source in sources):
        return None
    with untouched(loaded.model.module), torch.no_grad():
        logits = loaded.model.logits(tensors(loaded.model, [sample]))
    label = sample.label if logits is None else int(logits[0].argmax())
    lines = []
    for row, source in zip(rows, sources, strict=True):
        if source is None:
            continue
        prototype = int(found.targets.prototypes[row])
        lines.append(
            Likeness(
                loaded.model.describe(prototype),
                stretched(view_of(sample, found, row, map_=False, region=region), shown_size(sample)),
                View(source[0], box=source[1]),
                float(found.activations_before[row]),
                float(weights[prototype, label]),
            )
        )
    name = loaded.class_names[label] if loaded.class_names else f"class {label}"
    score = None if logits is None else float(logits[0, label])
    said = {"class_name": name, "title": f"Why {name}?", "method": found.method}
    return looks_like(lines, **said, score=score, count=count)


def bank(
    loaded: Loaded,
    dataset: Dataset,
    label: int,
    *,
    nearest: int = 4,
    limit: int = 400,
    seed: int = 0,
    batch: int = 32,
    method: str = "mdm",
) -> Figure | None:
    """A class's prototypes, each on its own training image and on the images nearest to it.

    Args:
        loaded: the model with its source images; None comes back where it holds none.
        dataset: where nearest patches are looked for, in ``limit`` of its images, drawn from the seed.
        label: the class.
        nearest: how many patches per prototype.
        limit: images looked at; of a data set with more, images in the order of classes would leave some out.
        seed: of these images.
        batch: images in one network pass.
        method: what locates the patches.
    """
    prototypes = class_prototypes(loaded.model, [label]).tolist()
    sources = {p: loaded.source(p) for p in prototypes}
    if not prototypes or any(source is None for source in sources.values()):
        return None
    looked_at = sorted(np.random.default_rng(seed).permutation(len(dataset))[:limit].tolist())
    activations = _activations(loaded, dataset, looked_at, batch)[:, prototypes]
    best = activations.sort(dim=0, descending=True, stable=True).indices[:nearest]
    rows = []
    for column, prototype in enumerate(prototypes):
        samples = [dataset[looked_at[i]] for i in best[:, column].tolist()]
        targets = [(i, prototype) for i in range(len(samples))]
        found = locate(loaded.model, tensors(loaded.model, samples), targets, method, batch=batch)
        near = tuple(
            Patch(stretched(view_of(s, found, i, map_=False), shown_size(s)), float(found.activations_before[i]))
            for i, s in enumerate(samples)
        )
        source = sources[prototype]
        if source is not None:
            rows.append(BankRow(loaded.model.describe(prototype), Patch(View(source[0], box=source[1])), near))
    name = loaded.class_names[label] if loaded.class_names else f"class {label}"
    return prototype_bank(name, rows, method=method)


@torch.no_grad()
def _activations(loaded: Loaded, dataset: Dataset, indices: Sequence[int], batch: int) -> torch.Tensor:
    def work(part: slice) -> torch.Tensor:
        samples = [dataset[i] for i in indices[part]]
        return loaded.model.activations(tensors(loaded.model, samples)).cpu()

    with untouched(loaded.model.module):
        return torch.cat(list(in_chunks(len(indices), batch, work)))


def contrast(
    sample: Sample, wrong: Localisation, right: Localisation, row: int, annotation: np.ndarray | None, caption: str
) -> Contrast:
    """One column of the picture of wrong versus right regions."""
    views = [
        View(sample.image, region=v.region, box=None, peak=v.peak, annotation=annotation)
        for v in (view_of(sample, wrong, row), view_of(sample, right, row))
    ]
    return Contrast(views[0], views[1], caption=caption)
