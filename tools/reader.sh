#!/usr/bin/env bash
# Has the Python reader decode every golden container and, where the lm12m weights are, the freshly packed lm12m pairs.
# Another one decodes the golden students, and the upload of histories is tried with a stand-in for wandb.
#   tools/reader.sh [--debug]
# Needs python3 (3.11 or newer) with pip; makes its own virtual environment in target/. --debug packs with
# target/debug/xtask, which must be built.
set -euo pipefail
cd "$(dirname "$0")/.."

data="${DELTALOOM_DATA:-../shared/data}"
source tools/venv.sh

manifests=(assets/golden/*/manifest.json)
if [ -d "$data/lm12m" ]; then
    xtask=(cargo run --quiet --release -p xtask --)
    [ "${1:-}" = --debug ] && xtask=(target/debug/xtask)
    "${xtask[@]}" pairs target/pairs --data "$data"
    manifests+=(target/pairs/manifest.json)
else
    echo "note: the lm12m weights are absent (no lm12m/ in $data): only golden containers are read"
fi
"$venv/bin/python" tools/check_reader.py "${manifests[@]}"
"$venv/bin/python" tools/check_student_reader.py
"$venv/bin/python" tools/check_wandb_upload.py
