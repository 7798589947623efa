#!/usr/bin/env bash
# Trains the model of assets/recall in the new folder OUT and packs it as OUT/recall.loom. Five minutes on an idle
# core; fetches torch (tools/torch.sh). More arguments go to tools/train_recall.py.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:?the folder to write is missing}
shift
. tools/torch.sh
cargo build --quiet --release -p deltaloom-cli
mkdir "$out"
"$python" tools/train_recall.py "$out/base" "$@"
target/release/deltaloom pack "$out/base" -o "$out/recall.loom" --preset max
echo "to bundle it: cp $out/recall.loom assets/recall && just assets && just recall-table"
