"""Stand-in for a ProtoPNet repository's push: each prototype becomes the nearest patch of its class's images."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import cv2
import matplotlib.image as plt
import numpy as np
import torch
from helpers import find_high_activation_crop, heat, makedir


def push_prototypes(
    dataloader: Any,
    prototype_network_parallel: Any,
    class_specific: bool = True,
    preprocess_input_function: Callable[[torch.Tensor], torch.Tensor] | None = None,
    prototype_layer_stride: int = 1,
    root_dir_for_saving_prototypes: str | None = None,
    epoch_number: int | None = None,
    prototype_img_filename_prefix: str | None = None,
    prototype_self_act_filename_prefix: str | None = None,
    proto_bound_boxes_filename_prefix: str | None = None,
    save_prototype_class_identity: bool = True,
    log: Callable[[str], object] = print,
    prototype_activation_function_in_numpy: Any = None,
) -> None:
    network = prototype_network_parallel.module
    prototype_network_parallel.eval()
    log("push")
    count = network.num_prototypes
    best = np.full(count, np.inf)
    patches = np.zeros(network.prototype_vectors.shape, dtype=np.float32)
    boxes, fields = np.full((2, count, 6), -1)
    folder = root_dir_for_saving_prototypes
    if folder is not None and epoch_number is not None:
        folder = os.path.join(folder, f"epoch-{epoch_number}")  # noqa: PTH118
    if folder is not None:
        makedir(folder)
    for k, (batch, labels) in enumerate(dataloader):
        update_prototypes_on_batch(
            batch,
            k * dataloader.batch_size,
            prototype_network_parallel,
            best,
            patches,
            fields,
            boxes,
            search_y=labels,
            preprocess_input_function=preprocess_input_function,
            dir_for_saving_prototypes=folder,
            prototype_img_filename_prefix=prototype_img_filename_prefix,
            prototype_self_act_filename_prefix=prototype_self_act_filename_prefix,
        )
    if folder is not None and proto_bound_boxes_filename_prefix is not None:
        np.save(f"{folder}/{proto_bound_boxes_filename_prefix}-receptive_field{epoch_number}.npy", fields)
        np.save(f"{folder}/{proto_bound_boxes_filename_prefix}{epoch_number}.npy", boxes)
    network.prototype_vectors.data.copy_(torch.tensor(patches))
    log(f"pushed {best.sum():.6f}")


def update_prototypes_on_batch(
    search_batch_input: torch.Tensor,
    start_index_of_search_batch: int,
    prototype_network_parallel: Any,
    global_min_proto_dist: np.ndarray,
    global_min_fmap_patches: np.ndarray,
    proto_rf_boxes: np.ndarray,
    proto_bound_boxes: np.ndarray,
    class_specific: bool = True,
    search_y: Any = None,
    num_classes: int | None = None,
    preprocess_input_function: Any = None,
    prototype_layer_stride: int = 1,
    dir_for_saving_prototypes: str | None = None,
    prototype_img_filename_prefix: str | None = None,
    prototype_self_act_filename_prefix: str | None = None,
    prototype_activation_function_in_numpy: Any = None,
) -> None:
    network = prototype_network_parallel.module
    ready = search_batch_input if preprocess_input_function is None else preprocess_input_function(search_batch_input)
    with torch.no_grad():
        features, distances = (t.cpu().numpy() for t in network.push_forward(ready.cuda()))
    cell = search_batch_input.shape[2] // distances.shape[2]
    for j in range(network.num_prototypes):
        own = np.flatnonzero(search_y.numpy() == int(network.prototype_class_identity[j].argmax()))
        if len(own) == 0 or distances[own, j].min() >= global_min_proto_dist[j]:
            continue
        at, y, x = np.unravel_index(distances[own, j].argmin(), distances[own, j].shape)
        i = own[at]
        global_min_proto_dist[j] = distances[i, j, y, x]
        global_min_fmap_patches[j] = features[i, :, y : y + 1, x : x + 1]
        field = (y * cell, (y + 1) * cell, x * cell, (x + 1) * cell)
        proto_rf_boxes[j] = (i + start_index_of_search_batch, *field, search_y[i])
        act = np.log((distances[i, j] + 1) / (distances[i, j] + network.epsilon))
        picture = search_batch_input[i].numpy().transpose(1, 2, 0)
        upsampled = cv2.resize(act, dsize=picture.shape[:2], interpolation=cv2.INTER_CUBIC)
        crop = find_high_activation_crop(upsampled)
        proto_bound_boxes[j] = (i + start_index_of_search_batch, *crop, search_y[i])
        if dir_for_saving_prototypes is None:
            continue
        start = f"{dir_for_saving_prototypes}/{prototype_img_filename_prefix}"
        np.save(f"{dir_for_saving_prototypes}/{prototype_self_act_filename_prefix}{j}.npy", act)
        overlay = np.clip(heat(picture, upsampled), 0, 1)
        plt.imsave(f"{start}-original{j}.png", picture, vmin=0, vmax=1)
        plt.imsave(f"{start}-original_with_self_act{j}.png", overlay, vmin=0, vmax=1)
        rows, columns = slice(*field[:2]), slice(*field[2:])
        plt.imsave(f"{start}-receptive_field{j}.png", picture[rows, columns], vmin=0, vmax=1)
        plt.imsave(f"{start}-receptive_field_with_self_act{j}.png", overlay[rows, columns], vmin=0, vmax=1)
        plt.imsave(f"{start}{j}.png", picture[slice(*crop[:2]), slice(*crop[2:])], vmin=0, vmax=1)
