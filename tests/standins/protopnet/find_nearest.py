"""Stand-in for a ProtoPNet repository's search for the patches nearest to each prototype."""

from __future__ import annotations

import heapq
from typing import Any

import cv2
import matplotlib.image as plt
import numpy as np
import torch
from helpers import find_high_activation_crop, heat, makedir


class ImagePatch:
    def __init__(
        self,
        patch: Any,
        label: Any,
        distance: Any,
        original_img: Any = None,
        act_pattern: Any = None,
        patch_indices: Any = None,
    ) -> None:
        self.patch, self.label, self.negative_distance = patch, label, -distance
        self.original_img, self.act_pattern, self.patch_indices = original_img, act_pattern, patch_indices

    def __lt__(self, other: ImagePatch) -> bool:
        return bool(self.negative_distance < other.negative_distance)


def find_k_nearest_patches_to_prototypes(
    dataloader: Any,
    prototype_network_parallel: Any,
    k: int = 5,
    preprocess_input_function: Any = None,
    full_save: bool = False,
    root_dir_for_saving_images: str = "./nearest",
    log: Any = print,
    prototype_activation_function_in_numpy: Any = None,
) -> np.ndarray:
    network = prototype_network_parallel.module
    prototype_network_parallel.eval()
    heaps: list[list[ImagePatch]] = [[] for _ in range(network.num_prototypes)]
    for pictures, labels in dataloader:
        ready = pictures if preprocess_input_function is None else preprocess_input_function(pictures)
        with torch.no_grad():
            distances = network.push_forward(ready.cuda())[1].cpu().numpy()
        for i, maps in enumerate(distances):
            for j, heap in enumerate(heaps):
                picture = pictures[i].numpy().transpose(1, 2, 0)
                if network.prototype_activation_function == "log":
                    act = np.log((maps[j] + 1) / (maps[j] + network.epsilon))
                else:
                    act = np.prod(network.prototype_shape[1:]) - maps[j]
                patch = ImagePatch(picture[:4, :4], labels[i], maps[j].min(), picture, act, (0, 4, 0, 4))
                heapq.heappush(heap, patch)
                if len(heap) > k:
                    heapq.heappop(heap)
    for j, heap in enumerate(heaps):
        if full_save:
            _save(sorted(heap)[::-1], f"{root_dir_for_saving_images}/{j}")
    return np.array([[int(patch.label) for patch in sorted(heap)[::-1]] for heap in heaps])


def _save(patches: list[ImagePatch], folder: str) -> None:
    makedir(folder)
    for i, patch in enumerate(patches, 1):
        size = patch.original_img.shape[:2]
        upsampled = cv2.resize(patch.act_pattern, dsize=size, interpolation=cv2.INTER_CUBIC)
        crop = find_high_activation_crop(upsampled)
        np.save(f"{folder}/nearest-{i}_act.npy", patch.act_pattern)
        np.save(f"{folder}/nearest-{i}_high_act_patch_indices.npy", crop)
        plt.imsave(f"{folder}/nearest-{i}_original.png", patch.original_img)
        overlay = np.clip(heat(patch.original_img, upsampled), 0, 1)
        plt.imsave(f"{folder}/nearest-{i}_original_with_heatmap.png", overlay)
