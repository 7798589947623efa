#!/usr/bin/env bash
# Keys and values of a long sequence in memory and in a file: the same bits, bounded memory.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet --release -p deltaloom-lm --example kv_file
exec python3 tools/context_kv_file.py "${CARGO_TARGET_DIR:-target}/release/examples/kv_file" "$@"
