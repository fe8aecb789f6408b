#!/usr/bin/env bash
# Train the small reference XProtoNet on planted scenes: train_planted_xprotonet.sh SEED OUT [DATA].
set -euo pipefail
protomask train xprotonet --data "${3:-planted}" --scenes 4000 --backbone conv-small --size 96 \
  --prototypes-per-class 2 --prototype-depth 64 --mean .55,.55,.52 --std .2,.2,.2 --augment off --erase 8 \
  --batch 40 --warm-epochs 0 --joint-epochs 20 --push-every 10 --one-cycle --last-layer-epochs 2 --weight-decay 0 \
  --lr-features 2e-3 --lr-add-on 2e-3 --lr-prototypes 2e-3 --lr-last-layer 1e-3 --transformed 10 --blank 1 \
  --test-every 0 --seed "$1" --out "$2"
