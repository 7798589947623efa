#!/usr/bin/env bash
# Asks a server of the bundled model with clients that people use: `clients`: the openai package and curl; `harness`:
# lm-evaluation-harness, whose numbers must be those of `deltaloom eval`; `endurance`: fine-tunes come and go for half an hour;
# `serve`: many fine-tunes of lm12m, measured. Needs Python 3.11 with pip and a Rust compiler.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/clients-venv
requirements=tools/requirements-clients.txt
. tools/venv.sh
cargo build --quiet --release -p deltaloom-cli
case ${1:?clients, harness, endurance or serve} in
serve) script=tools/bench_serve.py ;;
*) script=tools/check_$1.py ;;
esac
exec "$venv/bin/python" "$script" --program "$PWD/target/release/deltaloom" "${@:2}"
