#!/usr/bin/env bash
# Runs the tests of the kernels for aarch64 in an emulator, so that their NEON bodies are tested, too. Needs Debian's
# packages qemu-user, gcc-aarch64-linux-gnu and libc6-dev-arm64-cross, or what others call them.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
for needed in qemu-aarch64 aarch64-linux-gnu-gcc; do
    if ! command -v "$needed" >/dev/null; then
        echo "error: $needed is not installed" >&2
        exit 1
    fi
done
rustup target add "$target" >/dev/null 2>&1
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
exec cargo test -p deltaloom-kernels --features lab --target "$target" "$@"
