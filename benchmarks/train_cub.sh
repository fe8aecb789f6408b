#!/usr/bin/env bash
# Train a ProtoPNet on CUB files with a pretrained MobileNetV2: train_cub.sh ROOT WEIGHTS OUT [MORE OPTIONS].
# Small batches, strong weight decay and a push every third epoch replace the published 30-fold offline augmentation.
set -euo pipefail
root=$1 weights=$2 out=$3
shift 3
protomask train protopnet --data cub --root "$root" --backbone mobilenet_v2 --weights "$weights" --size 225 \
  --batch 10 --weight-decay 0.01 --warm-epochs 16 --joint-epochs 6 --push-every 3 --lr-step 4 \
  --lr-features 1e-5 --lr-last-layer 1e-3 --test-every 5 --out "$out" "$@"
