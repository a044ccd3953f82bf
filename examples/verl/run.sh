#!/bin/sh
# Trains as paced.yaml says, on the Ray cluster that RAY_ADDRESS names or on this machine; overrides go at the end:
#   examples/verl/run.sh actor_rollout_ref.model.path=Qwen/Qwen2.5-Math-7B trainer.nnodes=2
set -e
here=$(cd "$(dirname "$0")" && pwd)
exec python -m verl.trainer.main_ppo --config-path "$here" --config-name paced "$@"
