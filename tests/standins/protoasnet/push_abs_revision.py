"""Stand-in for ProtoASNet's push, written from what its functions are called with and what they write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image as plt
import numpy as np
import torch


def prototype_plot(
    img: np.ndarray,
    occurrence_map: np.ndarray,
    proto_id: int,
    fn: str,
    pred: np.ndarray,
    gt: int,
    proto_dir: str,
    m: float = 0.099,
    std: float = 0.171,
    interp: str = "none",
) -> None:
    size = img.shape[1:]
    upsampled = torch.nn.Upsample(size=size, mode="bilinear")(torch.from_numpy(occurrence_map)[None].float())
    span = upsampled.squeeze().numpy()
    span = (span - span.min()) / (span.max() - span.min() + 1e-7)
    picture = np.clip(img * std + m, 0, 1).transpose(1, 2, 0)
    plt.imsave(f"{proto_dir}/{proto_id:02d}_{fn}.png", np.concatenate([picture, picture * span[..., None]], 1))
    np.save(f"{proto_dir}/{proto_id:02d}_map.npy", span)


def push_prototypes(
    dataloader: Any,
    model: Any,
    class_specific: bool = True,
    root_dir_for_saving_prototypes: str | None = None,
    epoch_number: int | None = None,
    log: Any = print,
) -> None:
    model.eval()
    folder = Path(str(root_dir_for_saving_prototypes))
    folder.mkdir(parents=True, exist_ok=True)
    best: dict[int, Any] = {}
    for sample in dataloader:
        images = sample["cine"]
        with torch.no_grad():
            features, distances, maps, logits = (t.cpu().numpy() for t in model.push_forward(images.cuda()))
        for j in range(model.num_prototypes):
            i = int(distances[:, j].argmin())
            if j not in best or distances[i, j] < best[j][0]:
                best[j] = (distances[i, j], images[i].numpy(), maps[i, j], logits[i], features[i, j])
    np.save(folder / "occurrence.npy", np.stack([best[j][2] for j in best]))
    for j, (_, image, occurrence, logits, _features) in best.items():
        prototype_plot(image, occurrence, j, "case", logits, 0, str(folder), interp="bilinear")
    vectors = np.stack([best[j][4] for j in sorted(best)])
    model.prototype_vectors.data.copy_(torch.tensor(vectors).reshape(model.prototype_shape))
    log("pushed")
