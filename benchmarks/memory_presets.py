"""Peak memory of the presets, and whether a limit is kept: one process each, resident memory above the loaded model's.

The network is a ProtoPNet with random weights on a torchvision backbone; memory does not ask what they are. Linux
only (``VmHWM`` of ``/proc/self/status``, reset before ``locate``). ::

    python benchmarks/memory_presets.py --out benchmarks/results/memory-presets
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

import protomask
import protopnet_ext
from protomask.allocator import keep_memory
from protomask.files import write_text
from protomask.store import prepare_output
from protomask.training.backbones import build_features
from protopnet_ext.model import ProtoPNet

PRESETS = ("mdm-fast", "mdm", "mdm-best")
MIB = 1 << 20


def resident(name: str) -> int:
    """Bytes; ``VmRSS`` now or ``VmHWM`` at the highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


def child(args: argparse.Namespace) -> None:
    keep_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = ProtoPNet(build_features(args.backbone), (40, 128, 1, 1), 8, img_size=args.size).eval()
    wrapped = protopnet_ext.wrap(model)
    images = torch.randn(args.images, 3, args.size, args.size, generator=torch.Generator().manual_seed(1))
    protomask.locate(wrapped, images[:1], "top:1", "mdm", steps=2, batch=1)  # loads what is loaded once
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = resident("VmRSS")
    memory = args.limit * MIB if args.limit else None
    protomask.locate(wrapped, images, "top:1", args.preset, batch=args.batch, memory=memory)
    print(json.dumps({"peak MiB": (resident("VmHWM") - before) / MIB}))


def measure(preset: str, batch: int, limit: int, args: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--child", "--preset", preset, "--batch", str(batch), "--limit", str(limit)]
    command += ["--backbone", args.backbone, "--size", str(args.size), "--images", str(args.images), "--out", args.out]
    command += ["--threads", str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak MiB"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--size", type=int, default=225)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--preset", default="mdm", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=32, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    out = prepare_output(args.out)
    lines = [f"`python {' '.join(sys.argv)}`", "", "| preset | peak at batch 32 | peak under a limit of 1 GiB |"]
    lines += ["|---|---|---|"]
    for preset in PRESETS:
        free, limited = measure(preset, 32, 0, args), measure(preset, 512, 1024, args)
        lines.append(f"| {preset} | {free:.0f} MiB | {limited:.0f} MiB ({100 * limited / 1024 - 100:+.0f} %) |")
        print(lines[-1], flush=True)
    write_text(out / "table.md", "\n".join(lines) + "\n")
    return None


if __name__ == "__main__":
    main()
