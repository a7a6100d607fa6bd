#!/usr/bin/env bash
# Starts a Ray cluster on this machine, a head and some worker nodes, for trying out what needs
# several nodes. It uses free ports and a token of its own, and ends on exit, on Ctrl-C too, without
# touching other Ray clusters.
#
# Usage: launch/local_cluster.sh [--workers=N] [--cpus=N] [--object-store-mb=N] [-- COMMAND...]
#
# COMMAND runs with RAY_ADDRESS and the token set; its exit status is the script's. An argument of it that holds
# the text $RAY_ADDRESS, quoted, has the address put in. Without a COMMAND the script prints what to
# set to join, and keeps the cluster until it is interrupted.
#
#   launch/local_cluster.sh --workers=2 -- python -m primia_jax.launch \
#       --config=configs/smoke.py --workdir=DIR --ray_address='$RAY_ADDRESS'
#
# The head offers no CPUs, each worker --cpus of them (1): work that asks for CPUs runs on workers.
set -euo pipefail

workers=2
cpus=1
object_store_mb=200
while (($#)); do
  case "$1" in
    --workers=*) workers="${1#*=}" ;;
    --cpus=*) cpus="${1#*=}" ;;
    --object-store-mb=*) object_store_mb="${1#*=}" ;;
    --) shift; break ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) echo "$0: unknown argument '$1'; see $0 --help" >&2; exit 2 ;;
  esac
  shift
done
for number in "$workers" "$cpus" "$object_store_mb"; do
  if ! [[ "$number" =~ ^[1-9][0-9]*$ ]]; then
    echo "$0: '$number': expected a whole number of at least 1" >&2
    exit 2
  fi
done
venv="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin"
command -v ray >/dev/null || PATH="$venv:$PATH" # the one that `make` sets up
if ! command -v ray >/dev/null; then
  echo "$0: no 'ray' on the PATH; run \`make test\` once, or activate a virtual environment" >&2
  exit 2
fi

unset RAY_ADDRESS # it would turn a head into a client of another cluster
export RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # the nodes serve nobody else
# The path is short, because Ray puts Unix sockets below it and their names are limited.
root="$(mktemp -d /tmp/ray-local-XXXXXX)"
# Without a token, whoever reaches the machine's ports could run code here. Ray before 2.52 knows no
# tokens and ignores this.
(umask 077 && head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n' >"$root/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$root/token"
unset RAY_AUTH_TOKEN # it would go before the file

nodes=()   # process ids of our own `ray start`, and of nothing else
command='' # process id of COMMAND, which leads a process group

# stop [SIGNAL]: ends COMMAND, then the nodes; `ray start --block` ends its node's processes first.
stop() {
  trap - EXIT
  trap '' INT TERM HUP
  if [[ -n "$command" ]] && kill -"${1:-TERM}" -- "-$command" 2>/dev/null; then
    wait "$command" 2>/dev/null || true
  fi
  if ((${#nodes[@]})); then
    kill -TERM "${nodes[@]}" 2>/dev/null || true
    wait "${nodes[@]}" 2>/dev/null || true
  fi
  rm -rf "$root"
}
trap stop EXIT
trap 'stop INT; exit 130' INT
trap 'stop; exit 143' TERM HUP

# start_node NAME ARGUMENTS...: one node in the background. Background jobs of a script ignore
# Ctrl-C, so that it reaches this script alone, which then ends everything in order.
start_node() {
  local name="$1"
  shift
  ray start --block --dashboard-agent-listen-port=0 \
    --object-store-memory=$((object_store_mb * 1000000)) "$@" >"$root/$name.log" 2>&1 &
  nodes+=("$!")
}

# await PID TEST...: waits until TEST succeeds; false if the node has ended, or after 60 s.
await() {
  local pid="$1" tries=300
  shift
  until "$@"; do
    kill -0 "$pid" 2>/dev/null && ((tries-- > 0)) || return 1
    sleep 0.2
  done
}

give_up() {
  echo "$0: the node '$1' did not start:" >&2
  tail -n 15 "$root/$1.log" >&2
  exit 1
}

start_node head --head --port=0 --num-cpus=0 --include-dashboard=false --temp-dir="$root/ray"
await "${nodes[0]}" test -s "$root/ray/ray_current_cluster" || give_up head
RAY_ADDRESS="$(<"$root/ray/ray_current_cluster")"
export RAY_ADDRESS
# One after the other, and again if need be: Ray gives a node 30 s, which a busy machine may exceed.
for ((i = 1; i <= workers; i++)); do
  for attempt in 1 2 3; do
    start_node "worker_$i" --address="$RAY_ADDRESS" --num-cpus="$cpus" \
      --include-log-monitor=false --resources="{\"hospital\": 1, \"worker_$i\": 1}"
    await "${nodes[-1]}" grep -q 'Ray runtime started' "$root/worker_$i.log" && break
    ((attempt < 3)) || give_up "worker_$i"
    kill -TERM "${nodes[-1]}" 2>/dev/null || true
    wait "${nodes[-1]}" 2>/dev/null || true
    unset 'nodes[-1]'
  done
done

if (($# == 0)); then
  echo "A cluster with $workers workers runs; Ctrl-C ends it. To join, in another shell:"
  echo "export RAY_ADDRESS=$RAY_ADDRESS RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$root/token"
  wait -n "${nodes[@]}" || true
  echo "$0: a node has ended, and the cluster with it" >&2
  exit 1
fi

# The quoted text $RAY_ADDRESS in an argument stands for the address, which the caller cannot know.
set -m # a process group of its own, with signals as usual
"${@//\$RAY_ADDRESS/$RAY_ADDRESS}" &
command="$!"
set +m
status=0
wait "$command" || status="$?"
command=''
exit "$status"
