"""Stand-in for a ProtoPNet repository's analysis of one image: a script that computes at its top level."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import torch
from helpers import find_high_activation_crop, makedir

model_path, image_path, out = sys.argv[1:4]
ppnet = torch.load(model_path).cuda()
parallel = torch.nn.DataParallel(ppnet)
image = torch.from_numpy(np.load(image_path))[None].cuda()
logits, nearest = parallel(image)
_, distances = ppnet.push_forward(image)
activations = ppnet.distance_2_similarity(nearest)[0]
patterns = ppnet.distance_2_similarity(distances)
makedir(out)
for rank, j in enumerate(activations.argsort(descending=True).tolist() * 2):  # each is drawn twice, as upstream does
    pattern = patterns[0][j].detach().cpu().numpy()
    upsampled = cv2.resize(pattern, dsize=tuple(image.shape[2:]), interpolation=cv2.INTER_CUBIC)
    np.save(f"{out}/{rank}-prototype-{j}.npy", upsampled)
    np.save(f"{out}/{rank}-crop-{j}.npy", find_high_activation_crop(upsampled))
np.save(f"{out}/logits.npy", logits.detach().numpy())
print("predicted", int(logits.argmax()))
if "--fail" in sys.argv:
    raise RuntimeError("as asked")
sys.exit(7 if "--exit" in sys.argv else 0)
