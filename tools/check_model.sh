#!/usr/bin/env bash
# The loss of lm12m on 40 held-out sequences of English, in chunks of 1, 7 and 256 tokens: the same bits, and 5.094 as transformers gives. Logits of its fine-tunes, packed, have the bits of the dense ones.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${DELTALOOM_DATA:-../shared/data}/lm12m
if [ ! -d "$data/base" ]; then
    echo "skipped: no lm12m in $data"
    exit 0
fi
cargo build --release -p deltaloom-lm --example model_check
found=$("${CARGO_TARGET_DIR:-target}/release/examples/model_check" "$data/base" "$data/base/val_english.u16" 40 \
    "$data/ft_bf16" "$data/ft_master" "$data/ft_lora_merged" "$data/ckpt_11")
echo "$found"
case $found in
"chunks of 1: 5.09"[345]*) echo "as transformers gives: 5.094" ;;
*) echo "error: transformers gives 5.094" >&2; exit 1 ;;
esac
