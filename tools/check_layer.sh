#!/usr/bin/env bash
# The loss of the lm12m base on 40 held-out sequences of English, computed layer by layer on packed weights. transformers 5.23 gives 5.094 for it.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${DELTALOOM_DATA:-../shared/data}/lm12m
cargo build --release -p deltaloom-lm --example layer_loss
run() { "${CARGO_TARGET_DIR:-target}/release/examples/layer_loss" "$@"; }
for pair in "base base" "base ft_bf16"; do
    set -- $pair
    for text in english code; do
        echo "$2 on $text: $(run "$data/$1" "$data/$2" "$data/base/val_$text.u16" 40)"
    done
done
loss=$(run "$data/base" "$data/base" "$data/base/val_english.u16" 40)
case $loss in
5.09[3-5]*) echo "as transformers gives: 5.094" ;;
*) echo "error: $loss, transformers gives 5.094" >&2; exit 1 ;;
esac
