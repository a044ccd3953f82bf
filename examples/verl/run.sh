#!/bin/sh
# Trains with paced.yaml on the Ray cluster at RAY_ADDRESS or on this machine. Append overrides:
#   examples/verl/run.sh actor_rollout_ref.model.path=Qwen/Qwen2.5-Math-7B trainer.nnodes=2
set -e
here=$(cd "$(dirname "$0")" && pwd)
exec python -m verl.trainer.main_ppo --config-path "$here" --config-name paced "$@"
