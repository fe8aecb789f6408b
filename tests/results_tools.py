"""A folder of results as ``protomask evaluate`` leaves it, made up: any number of pairs, methods and odd names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from protomask.data.sample import Geometry, Sample
from protomask.metrics import METRICS, Truth
from protomask.pairs import Pair
from protomask.records import Localisation, Targets
from protomask.reporting.kept import Kept
from protomask.reporting.tidy import Scored, write_csv
from protomask.store._json import write_json

SCORED = (
    "pointing-game", "energy", "iou-p95", "iou-own-area", "iou-best", "box-iou", "energy-floor", "deletion",
    "insertion", "deletion-30", "insertion-30", "sufficiency-drop", "top5-in-box", "part-hit", "part-hit-2r",
)  # fmt: skip
METHODS = ("mdm", "upsampling", "single-mask", "random", "centre", "annotation")


def sample(index: int, size: int, name: str = "") -> Sample:
    """An image with as much detail as a photograph."""
    rng = np.random.default_rng(index)
    coarse = cv2.resize(rng.integers(0, 255, (6, 6, 3)).astype(np.uint8), (size, size), interpolation=cv2.INTER_CUBIC)
    fine = cv2.GaussianBlur(rng.normal(0, 60, (size, size, 3)), (0, 0), 1.2)
    image = np.clip(coarse + fine, 0, 255).astype(np.uint8)
    return Sample(
        name or f"images/{index}.jpg", image, index % 7, Geometry((size, size), (0, 0, size, size), (size, size))
    )


def localisation(method: str, count: int, size: int, seed: int, *, located: bool = True) -> Localisation:
    """Smooth random maps for ``count`` pairs, each with its own image."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.rand((count, 1, 9, 9), generator=generator) ** 3
    maps = torch.nn.functional.interpolate(grid, size=(size, size), mode="bicubic")[:, 0].clamp(0, 1)
    peaks = maps.flatten(1).argmax(1)
    return Localisation(
        method=method,
        targets=Targets(torch.arange(count), torch.arange(count) % 5),
        maps=maps,
        boxes=torch.tensor([[1, 1, size // 2, size // 2]] * count),
        peaks=torch.stack([peaks % size, peaks // size], 1),
        activations_before=torch.full((count,), 3.0),
        activations_after=torch.full((count,), 2.0),
        scores=torch.full((count,), 0.7),
        located=torch.full((count,), located),
        reasons=("" if located else "constant map",) * count,
        settings={"steps": 25},
    )


def make_results(
    folder: Path,
    pairs: int = 12,
    methods: Sequence[str] = METHODS,
    *,
    size: int = 48,
    chunk: int = 8,
    name: str = "",
    metrics: Sequence[str] = SCORED,
) -> Path:
    """Write run.json, pairs.csv, regions.json and examples/; ``name`` stands for everything that users name."""
    kept = Kept(2, folder)
    done: list[Pair] = []
    for start in range(0, pairs, chunk):
        rows = range(start, min(start + chunk, pairs))
        samples = [sample(k, size, name and f"{name}{k}") for k in rows]
        group = [
            Pair(k, r % 5, s.image_id, s.group, 0, 3.0, 0.0) for r, (k, s) in enumerate(zip(rows, samples, strict=True))
        ]
        regions = torch.zeros((len(rows), size, size), dtype=torch.bool)
        regions[:, size // 4 : size // 2, size // 4 : size // 2] = True
        truth = Truth(regions, "part", None, None, None, tuple(p.group for p in group))
        found = {m: localisation(m, len(rows), size, 100 * k + start) for k, m in enumerate(methods)}
        kept.see(group, samples, found, truth)
        done += group
    names = [name or f"class {p} / 0" for p in range(5)]
    kept.finish(folder, done, names)
    scored = [
        Scored(p.image_id, p.group, name or f"class {p.index % 7}", p.prototype, names[p.prototype], "wing")
        for p in done
    ]
    write_csv(folder / "pairs.csv", scored, values(pairs, methods, metrics))
    write_json(folder / "run.json", about(methods, pairs, name))
    return folder


def values(pairs: int, methods: Sequence[str], metrics: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """mdm is best everywhere, by about .3; the rest are alike."""
    rng = np.random.default_rng(0)
    made: dict[str, dict[str, np.ndarray]] = {}
    for method in methods:
        made[method] = {}
        for metric in metrics:
            lift = 0.3 * (method == "mdm") * (1 if METRICS[metric].higher_is_better else -1)
            made[method][metric] = np.clip(rng.normal(0.5, 0.1, pairs) + lift, 0, 1)
    return made


def about(methods: Sequence[str], pairs: int, name: str = "") -> dict[str, object]:
    """What run.json says."""
    return {
        "version": 1,
        "command": f"protomask evaluate {name or 'model'}",
        "model": {"name": name or "a model"},
        "data": {"name": name or "some data"},
        "seed": 0,
        "scoring_fill": "mean",
        "counts": {"pairs": pairs, "drawn": pairs, "qualified": pairs, "clear": pairs, "kind": "part"},
        "methods": {
            m: {
                "control": m in ("random", "centre", "annotation"),
                "fill": "mean" if m == "single-mask" else "",
                "passes": 25,
                "settings": {"steps": 25},
            }
            for m in methods
        },
        "metrics": {
            m: {"direction": 1 if k.higher_is_better else -1, "family": k.family, "sentence": k.sentence}
            for m, k in METRICS.items()
        },
        "pictures": [],
        "versions": {"protomask": "0"},
    }
