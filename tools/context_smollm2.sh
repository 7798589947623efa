#!/usr/bin/env bash
# Plans of attention on SmolLM2, up to twice its trained length; --small only tries the script. Fetches the model (93 MB).
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/smollm2.sh
cargo build --quiet --release -p deltaloom-cli
exec python3 tools/context_smollm2.py --program "${CARGO_TARGET_DIR:-target}/release/deltaloom" --smollm2 "$smollm2" "$@"
