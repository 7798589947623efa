#!/usr/bin/env bash
# Runs tools/field.py with the release program; passes its arguments on. Needs what tools/reader.sh needs.
set -euo pipefail
cd "$(dirname "$0")/.."

source tools/venv.sh
cargo build --quiet --release -p deltaloom-cli
"$venv/bin/python" tools/field.py target/release/deltaloom "$@"
