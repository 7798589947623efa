#!/usr/bin/env bash
# Makes the dense series: trains the lm12m base further and writes a BF16 snapshot of every step to OUT (default
# target/series/lm12m). Arguments behind OUT go to make_series.py. Fetches jax for the CPU (150 MB) from PyPI.
set -euo pipefail
cd "$(dirname "$0")/../.."
target="${CARGO_TARGET_DIR:-target}"
out="${1:-$target/series/lm12m}"
shift || true
venv="$target/series-venv"
if ! [ -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement benches/series/requirements.txt
fi
model="${DELTALOOM_DATA:-../shared/data}/lm12m/base"
# One thread: sums are then taken in the same order each time.
export XLA_FLAGS="--xla_cpu_multi_thread_eigen=false"
exec "$venv/bin/python" benches/series/make_series.py "$model" "$out" "$@"
