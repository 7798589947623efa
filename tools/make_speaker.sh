#!/usr/bin/env bash
# Trains the bundled model and its fine-tunes in a new folder and packs them in its folder `packed`,
# which becomes assets/speaker. Ten minutes on an idle core; fetches torch (tools/torch.sh).
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:?the folder to write is missing}
. tools/torch.sh
cargo build --quiet --release -p deltaloom-cli
"$python" tools/make_speaker.py "$out"
mkdir "$out/packed"
target/release/deltaloom pack "$out/base" -o "$out/packed/base.loom" --preset max
for name in pirate chat; do
    target/release/deltaloom pack "$out/$name" --base "$out/base" -o "$out/packed/$name.loom" --preset max
done
cp "$out"/text.txt "$out"/*.jsonl "$out/packed"
echo "to bundle them: cp $out/packed/* assets/speaker && just assets"
