"""Stand-in for ProtoASNet's local explanations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from explainability_utils import get_normalized_upsample_occurence_maps, get_src


def explain_local(mode: str, dataloader: Any, model: Any, model_directory: str, log: Any = print) -> None:
    model.eval()
    own = np.load(f"{model_directory}/own.npy")  # the prototypes' own pictures, [P, 3, H, W]
    with torch.no_grad():
        maps = model.push_forward(torch.from_numpy(own).cuda())[2].numpy()[range(len(own)), range(len(own))]
    _, upsampler = get_src(own)
    np.save(f"{model_directory}/{mode}-prototypes.npy", get_normalized_upsample_occurence_maps(maps, upsampler))
    for k, sample in enumerate(dataloader):
        for i in range(len(sample["cine"])):
            image = sample["cine"][i : i + 1]
            with torch.no_grad():
                _, distances, maps, _ = (t.numpy() for t in model.push_forward(image.cuda()))
            _, upsampler = get_src(image.numpy())
            overlays = get_normalized_upsample_occurence_maps(maps[0], upsampler)
            np.save(f"{model_directory}/{mode}-{k}-{i}.npy", overlays)
            np.save(f"{model_directory}/{mode}-{k}-{i}-distances.npy", distances)
