#!/usr/bin/env bash
# Has the Python reader decode every golden container and, where the lm12m weights are, the freshly packed lm12m pairs.
# Needs python3 (3.11 or newer) with pip; makes its own virtual environment in target/.
set -euo pipefail
cd "$(dirname "$0")/.."

data="${DELTALOOM_DATA:-../shared/data}"
venv=target/reader-venv
if ! cmp -s tools/requirements.txt "$venv/requirements.txt"; then
    echo "making $venv"
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r tools/requirements.txt
    cp tools/requirements.txt "$venv/requirements.txt"
fi

manifests=(assets/golden/*/manifest.json)
if [ -d "$data/lm12m" ]; then
    cargo run --quiet --release -p xtask -- pairs target/pairs --data "$data"
    manifests+=(target/pairs/manifest.json)
else
    echo "note: the lm12m weights are absent (no lm12m/ in $data): only golden containers are read"
fi
"$venv/bin/python" tools/check_reader.py "${manifests[@]}"
