#!/usr/bin/env bash
# Trains on a Cloud TPU VM slice: the same command on every host of it.
#
#   TPU=my-slice ZONE=us-central2-b launch/run_tpu.sh \
#     --config=configs/train/barbero_120m.py --workdir=/mnt/share/run \
#     --mesh=data:-1
#
# TPU      name of the TPU VM (made with `gcloud compute tpus tpu-vm create`)
# ZONE     its zone
# REPO     where the checkout lies on the hosts (default: ~/sinkjax)
# SETUP=1  first make REPO/.venv on every host and install from setup.py
# DRY_RUN=1 prints the commands and runs none
#
# The hosts find each other by their environment; --workdir must be a folder
# that all of them see (a mounted bucket or a file share).
set -euo pipefail

: "${TPU:?set TPU to the name of the TPU VM}"
: "${ZONE:?set ZONE to its zone}"
REPO=${REPO:-'~/sinkjax'}
if [[ $# -eq 0 ]]; then
  echo "give the flags of launch.train: --config=... --workdir=..." >&2
  exit 1
fi

run() {
  if [[ -n "${DRY_RUN:-}" ]]; then
    printf '%q ' "$@"; printf '\n'
  else
    "$@"
  fi
}

everywhere() {
  run gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="$1"
}

if [[ -n "${SETUP:-}" ]]; then
  everywhere "cd $REPO && python3 -m venv .venv && .venv/bin/pip install -q 'jax[tpu]' ."
fi
everywhere "cd $REPO && .venv/bin/python -m launch.train --distributed $(printf '%q ' "$@")"
