#!/usr/bin/env bash
# Prove and measure everything on one card, in under eight minutes, without a network.
#
#     bench/gpu.sh --out DIR [--wheels DIR] [--device cuda] [--small] [--parts NAME ...]
#         [--limit NAME=SECONDS ...] [--seconds 460] [--checkpoint FILE]
#
# DIR gets gpu.json, gpu.md and gpu.log, rewritten after every part. The wheels are what the Python
# at hand lacks; tools/gpu_wheels.sh fetches them. Everything else is read by gpu/run.py.
# The rehearsal without a card: bench/gpu.sh --device cpu --small --out DIR
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

arguments=() wheels=
while (($#)); do
    case $1 in
    --wheels) wheels=${2:?--wheels takes a folder} && shift 2 ;;
    --wheels=*) wheels=${1#*=} && shift ;;
    *) arguments+=("$1") && shift ;;
    esac
done

site=
if [[ -n $wheels ]]; then
    site=$scratch/site
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --disable-pip-version-check --target "$site" "$wheels"/*.whl
fi

export PYTHONPATH="$root:$root/bench:$root/tests${site:+:$site}${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# What a user of this machine noted or exported is not part of what is proved.
export ANIMA_PIPE_HOME="$scratch/home"
unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT

cd "$root"
"$python" -m gpu.run --scratch "$scratch" --spent "$SECONDS" "${arguments[@]}"
