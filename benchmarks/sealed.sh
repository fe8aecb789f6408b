#!/usr/bin/env bash
# The sealed test of docs/search-protocol.md: sealed.sh CUB_ROOT INAT_WEIGHTS OUT [WORKERS]. To be run once.
# Trains the networks that no development saw, locates and scores the test pairs, and makes the tables in OUT/results.
# Given again after an interruption it goes on. Trainings and each evaluation are spread over WORKERS processes of one
# thread (default 1); all in all some five core-hours, of which the birds are three.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$1" && pwd) weights=$(realpath "$2") workers=${4:-1}
mkdir -p "$3"
cd "$3"
export OMP_NUM_THREADS=1

SPECIES=73,75,81,83,87,95,106,139,188,192
CAUSAL=deletion,insertion,deletion-30,insertion-30,sufficiency-drop
CAUSAL+=,deletion-30@blur,insertion-30@blur,sufficiency-drop@blur,deletion-30@road,insertion-30@road,sufficiency-drop@road
ON_BIRDS=mdm,mdm-fast,mdm-best,smoothgrad,rise,upsampling,upsampling-centred,single-mask,random,centre,annotation
ON_PLANTED=$ON_BIRDS,occlusion,saliency,integrated-gradients,gradcam,prp,neuromask,extremal

score() { # NAME OPTION...
  local name=$1 running=() i
  shift
  set -- evaluate "$name" "$@" --seed 20 --threads 1 --quiet --panels 4 --out "scores/$name"
  for ((i = 0; i < workers; i++)); do
    protomask "$@" --shard "$i/$workers" &
    running+=($!)
  done
  for i in "${running[@]}"; do wait "$i"; done
  protomask "$@" --assemble
}

train() { # FAMILY SEED PREFIX
  bash "$here/train_$1.sh" "$2" "$3-$2"
}
export -f train
export here
bash "$here/train_cub.sh" "$root" "$weights" inat --seed 0
printf '%s\n' "planted 10 planted" "planted_xprotonet 10 xplanted" "planted 11 planted" "planted_xprotonet 11 xplanted" |
  xargs -P "$workers" -L 1 bash -c 'set -e; train "$@"' train

score inat --data cub --root "$root" --species "$SPECIES" --pairs 297 --methods "$ON_BIRDS" \
  --metrics "pointing-game,energy,energy-floor,top5-in-box,part-hit,part-hit-2r,$CAUSAL"
for family in planted:101 xplanted:102; do
  for seed in 10 11; do
    score "${family%:*}-$seed" --data planted --scenes 600 --data-seed "${family#*:}" --pairs 120 --methods "$ON_PLANTED" \
      --metrics "pointing-game,energy,iou-best,box-iou,part-hit,part-hit-2r,dice,ppv,sensitivity,$CAUSAL"
  done
done

python "$here/full_table.py" scores/inat --out results/sealed-cub20
python "$here/full_table.py" scores/planted-10 scores/planted-11 --out results/sealed-planted
python "$here/full_table.py" scores/xplanted-10 scores/xplanted-11 --out results/sealed-planted-xprotonet
