#!/usr/bin/env bash
# Runs tools/field.py with the release program, or after --debug with target/debug/deltaloom, which must be built.
# Passes its other arguments on. Needs what tools/reader.sh needs.
set -euo pipefail
cd "$(dirname "$0")/.."

source tools/venv.sh
program=target/release/deltaloom
if [ "${1:-}" = --debug ]; then
    program=target/debug/deltaloom
    shift
else
    cargo build --quiet --release -p deltaloom-cli
fi
"$venv/bin/python" tools/field.py "$program" "$@"
