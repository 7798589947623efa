#!/usr/bin/env bash
# Asks a server of the bundled model with clients that people use: `clients`: the openai package and curl; `harness`:
# lm-evaluation-harness, whose numbers must be those of `deltaloom eval`. Needs Python 3.11 with pip and a Rust compiler.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/clients-venv
requirements=tools/requirements-clients.txt
. tools/venv.sh
cargo build --quiet --release -p deltaloom-cli
exec "$venv/bin/python" "tools/check_${1:?clients or harness}.py" --program target/release/deltaloom "${@:2}"
