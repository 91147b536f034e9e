#!/usr/bin/env bash
# Trains on GPUs of a Slurm cluster: one process a GPU, one command.
#
#   NODES=2 GPUS=8 launch/run_slurm.sh --config=configs/train/barbero_120m.py \
#     --workdir=/shared/run --mesh=data:-1
#
# NODES    machines (default 1)
# GPUS     of each (default 8)
# TIME     limit, as Slurm writes it (default 24:00:00)
# PYTHON   of an environment with sinkjax and jax[cuda12] (default: python)
# SBATCH   more flags for sbatch, as in SBATCH="--partition=h100 --account=me"
# DRY_RUN=1 prints the job and submits nothing
#
# Two minutes before the limit Slurm sends SIGTERM and the run saves; a job that
# was preempted is queued again. The same command always goes on where the last
# one stopped. --workdir must be on a file system that all nodes see.
set -euo pipefail

NODES=${NODES:-1}; GPUS=${GPUS:-8}; TIME=${TIME:-24:00:00}
PYTHON=${PYTHON:-python}
if [[ $# -eq 0 ]]; then
  echo "give the flags of launch.train: --config=... --workdir=..." >&2
  exit 1
fi

job=$(cat <<EOF
#!/usr/bin/env bash
#SBATCH --job-name=sinkjax
#SBATCH --nodes=$NODES
#SBATCH --ntasks-per-node=$GPUS
#SBATCH --gpus-per-node=$GPUS
#SBATCH --time=$TIME
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
srun --kill-on-bad-exit=1 $PYTHON -m launch.train --distributed $(printf '%q ' "$@")
EOF
)
if [[ -n "${DRY_RUN:-}" ]]; then
  printf '%s\n' "$job"
else
  # shellcheck disable=SC2086
  printf '%s\n' "$job" | sbatch ${SBATCH:-}
fi
