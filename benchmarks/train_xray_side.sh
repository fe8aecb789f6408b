#!/usr/bin/env bash
# Train an XProtoNet to tell which side of the patient a half radiograph shows: train_xray_side.sh ROOT WEIGHTS OUT [MORE].
# ROOT holds boxes.csv, images.csv and images/. One half of each image is mirrored, so that the spine's edge tells nothing.
set -euo pipefail
root=$1 weights=$2 out=$3
shift 3
protomask train xprotonet --data boxes --root "$root" --task side --backbone mobilenet_v2 --weights "$weights" \
  --size 193 --mean .5 --std .25 --prototypes-per-class 4 --prototype-depth 64 --batch 16 --warm-epochs 15 \
  --joint-epochs 8 --last-layer-epochs 10 --lr-features 1e-4 --lr-step 5 --area .5 --transformation .5 --blank 1 \
  --test-every 0 --out "$out" "$@"
