#!/usr/bin/env bash
#SBATCH --job-name=primia_jax
#SBATCH --nodes=4                  # one for the head, and one for each hospital
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.log
# For hospitals with GPUs add: #SBATCH --gpus-per-task=1
#
# Runs COMMAND on the nodes of one SLURM job, with RAY_ADDRESS set to a Ray cluster of them:
#
#   sbatch launch/slurm.sh python -m primia_jax.launch --config=configs/NAME.py \
#       --workdir=runs/NAME --ray_address='$RAY_ADDRESS' --config.federated.hospitals=3 \
#       --config.runtime.cpus_per_hospital=1 --config.runtime.threads=8
#
# An argument that holds the text $RAY_ADDRESS, quoted, has the address put in. Submit with the
# virtual environment activated, from the root of the repository, on a file system of all nodes.
# The cluster ends with the job: SLURM ends all processes of it, and no others.
set -euo pipefail

if (($# == 0)); then
  echo "usage: sbatch launch/slurm.sh COMMAND..." >&2
  exit 2
fi
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
if ((${#hosts[@]} < 2)); then
  echo "slurm.sh: at least two nodes are needed, a head and a hospital; see --nodes" >&2
  exit 2
fi

# Other users of the nodes must not be able to join. The file is for its owner's eyes alone and lies
# where all nodes see it.
token="$PWD/.ray-token-$SLURM_JOB_ID"
(umask 077 && head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n' >"$token")
trap 'rm -f "$token"' EXIT
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token" RAY_USAGE_STATS_ENABLED=0
unset RAY_AUTH_TOKEN RAY_ADDRESS

# A port that follows from the job, so that two jobs on one node do not meet.
port=$((20000 + SLURM_JOB_ID % 10000))
address="${hosts[0]}:$port"
# Ray's sockets ask for no token, so that they lie in a folder for its owner alone. It is made on each
# node, and the job ends if the name is there already: somebody else could have made it.
folder="/tmp/primia_jax-$SLURM_JOB_ID"
# on HOST COMMAND...: a step of this job on one node, in the background.
on() {
  local host="$1"
  shift
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$host" "$@" &
}

# node HOST ARGUMENTS...: a Ray node.
node() {
  local host="$1"
  shift
  # shellcheck disable=SC2016  # expanded on the node
  on "$host" bash -c 'mkdir -m 700 "$0" && exec ray start --block "$@"' "$folder" "$@"
}

node "${hosts[0]}" --head --port="$port" --num-cpus=0 --include-dashboard=false \
  --temp-dir="$folder/ray"
until ray status --address="$address" >/dev/null 2>&1; do
  kill -0 "$!" || { echo "slurm.sh: the head did not start" >&2; exit 1; }
  sleep 2
done
# Each node offers one CPU, whatever it has: one hospital lands on each.
for host in "${hosts[@]:1}"; do
  node "$host" --address="$address" --num-cpus=1 --resources='{"hospital": 1}'
done
waited=0
until (($(ray status --address="$address" 2>/dev/null | grep -c '^ 1 node_') == ${#hosts[@]})); do
  ((waited++ < 60)) || { echo "slurm.sh: not all nodes joined within two minutes" >&2; exit 1; }
  sleep 2
done

# This script runs on the first of the nodes, beside the head.
export RAY_ADDRESS="$address"
"${@//\$RAY_ADDRESS/$RAY_ADDRESS}"
