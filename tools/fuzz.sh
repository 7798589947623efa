#!/usr/bin/env bash
# Runs one fuzz target for some seconds on its seeds: tools/fuzz.sh TARGET SECONDS, such as tools/fuzz.sh gguf 300.
# The targets are the files of fuzz/fuzz_targets; what each does is said there.
# Needs cargo-fuzz (`cargo install cargo-fuzz --locked`); a stable compiler will do.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

target="${1:?which target}" seconds="${2:-30}"
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "error: cargo-fuzz is missing; install it with: cargo install cargo-fuzz --locked" >&2
    exit 1
fi
# Coverage and the address sanitizer are unstable options of the compiler; this lets a stable one have them.
export RUSTC_BOOTSTRAP=1
# zstd's C code gets the sanitizer too, and GCC's check of scopes is wrong about constant arrays in it.
export CFLAGS="${CFLAGS:-} -fno-sanitize-address-use-after-scope"
# `roundtrip` restores files, which are synced, and starts threads, for which the sanitizer would map fake stacks.
export ASAN_OPTIONS="detect_stack_use_after_return=0:${ASAN_OPTIONS:-}"
if [ -z "${TMPDIR:-}" ] && [ -w /dev/shm ]; then export TMPDIR=/dev/shm; fi
# New inputs go to the first folder, so that the seeds stay as they are.
mkdir -p "target/corpus/$target"
exec cargo fuzz run "$target" "target/corpus/$target" "corpus/$target" -- \
    -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -print_final_stats=1
