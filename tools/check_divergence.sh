#!/usr/bin/env bash
# Rounds lm12m to 4 bits and compares `deltaloom eval divergence` with a computation in numpy. Needs the weights.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${DELTALOOM_DATA:-../shared/data}/lm12m
if [ ! -d "$data/base" ]; then
    echo "skipped: no lm12m in $data"
    exit 0
fi
. tools/venv.sh
cargo build --quiet --release -p deltaloom-cli
exec "$venv/bin/python" tools/check_divergence.py "${CARGO_TARGET_DIR:-target}/release/deltaloom" "$data/base"
