"""Peak memory of an XProtoNet with many prototypes: activations of planted images, then located pairs.

    PYTHONPATH=. python benchmarks/memory_xprotonet.py --kind naive --prototypes 2000

``reference`` is ours, with random weights; ``naive`` is the tests' stand-in for re-implementations, which multiplies
every occurrence map with all features ([B, P, D, h, w] in one tensor). Peaks are of the whole process so far, in MB
above what it held when the model and the images were there.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import torch

import protomask
import xprotonet_ext
from protomask.checkpoint import Description
from protomask.data import Planted, to_tensor
from protomask.model import IMAGENET_MEAN, IMAGENET_STD
from tests.xprotonet import xprotonet

SIZE = 96


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make(kind: str, prototypes: int) -> torch.nn.Module:
    if kind == "naive":
        return xprotonet(prototypes=prototypes, classes=20, size=SIZE, depth=64)
    shape = (prototypes, 64, 1, 1)
    described = Description("xprotonet", "conv-small", shape, 20, activation="cosine", size=(SIZE, SIZE))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return xprotonet_ext.build(described).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("reference", "naive"), default="reference")
    parser.add_argument("--prototypes", type=int, default=2000)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pass-bytes", type=int, default=xprotonet_ext.adapter.PASS_BYTES)
    parser.add_argument("--steps", type=int, help="of MDM, then without gradients (default: its own)")
    args = parser.parse_args()
    scenes = Planted("birds", "test", count=args.images, size=SIZE)
    images = to_tensor([scenes[k].image for k in range(args.images)], IMAGENET_MEAN, IMAGENET_STD)
    module = make(args.kind, args.prototypes)
    before = peak()
    model = xprotonet_ext.wrap(module, pass_bytes=args.pass_bytes)
    told: dict[str, object] = {**vars(args), "images_per_pass": model.images_per_pass}
    told["wrap_mb"] = round(peak() - before)
    start = time.perf_counter()
    with torch.no_grad():
        model.activations(images)
    told |= {"activations_mb": round(peak() - before), "activations_s": round(time.perf_counter() - start, 1)}
    pairs = [(k % args.images, k * args.prototypes // args.pairs) for k in range(args.pairs)]
    settings = {} if args.steps is None else {"steps": args.steps, "gradients": 0}  # the peak is that of one step
    start = time.perf_counter()
    protomask.locate(model, images[: min(args.images, args.pairs)], pairs, batch=args.batch, **settings)
    told |= {"with_locate_mb": round(peak() - before), "locate_s": round(time.perf_counter() - start, 1)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
