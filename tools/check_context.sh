#!/usr/bin/env bash
# Compares models that `deltaloom context apply --export` writes with transformers in FP32. Needs lm12m; fetches torch.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/torch.sh
cargo build --quiet --release -p deltaloom-cli
cargo build --quiet --release -p deltaloom-lm --example model_numbers
release=${CARGO_TARGET_DIR:-target}/release
exec "$python" tools/check_context.py --program "$release/examples/model_numbers" --deltaloom "$release/deltaloom" \
    --lm12m "${DELTALOOM_DATA:-../shared/data}/lm12m/base" "$@"
