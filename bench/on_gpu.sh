#!/bin/sh
# Measures one GPU with nothing but python3, torch and this checkout: see bench/on_gpu.py.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH="$root/operator:$root/bench" exec "${PYTHON:-python3}" "$root/bench/on_gpu.py" "$@"
