#!/usr/bin/env bash
# Compares SmolLM2, from a GGUF file, and lm12m with transformers in FP32: logits, greedy text, perplexity, chat
# templates. Arguments go to check_smollm2.py: --write PAGE records the table. Fetches torch and the model (93 MB).
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/smollm2.sh
. tools/torch.sh
cargo build --quiet --release -p deltaloom-lm --example model_numbers
exec "$python" tools/check_smollm2.py --program "${CARGO_TARGET_DIR:-target}/release/examples/model_numbers" \
    --smollm2 "$smollm2" --lm12m "${DELTALOOM_DATA:-../shared/data}/lm12m/base" "$@"
