#!/usr/bin/env bash
# Train a ProtoPNet on CUB files with a pretrained MobileNetV2: train_cub.sh ROOT WEIGHTS OUT [MORE OPTIONS].
# The backbone stays frozen: warm-up alone, with fast add-on layers and half the published cluster cost. Training it
# with strong weight decay is as accurate, but its features grow alike and prototypes then respond to every image.
set -euo pipefail
root=$1 weights=$2 out=$3
shift 3
protomask train protopnet --data cub --root "$root" --backbone mobilenet_v2 --weights "$weights" --size 225 \
  --prototypes-per-class 5 --batch 20 --warm-epochs 40 --joint-epochs 0 --cluster 0.4 --lr-add-on 1e-2 \
  --lr-prototypes 1e-2 --lr-last-layer 1e-3 --test-every 10 --out "$out" "$@"
