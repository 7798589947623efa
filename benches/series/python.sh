#!/usr/bin/env bash
# Runs a script with Python and numpy, in a virtual environment of their own in target/.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv="${CARGO_TARGET_DIR:-target}/series-numpy-venv"
if ! [ -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
fi
exec "$venv/bin/python" "$@"
