#!/usr/bin/env bash
# Formats, lints and runs the unit tests of the crates with changes since a commit (HEAD if none is
# named), files that are not committed included.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fmt --all
changed=$( (git diff --name-only "${1:-HEAD}" && git ls-files --others --exclude-standard) |
    sed -n 's|^crates/\([^/]*\)/.*|\1|p' | sort -u)
if [ -z "$changed" ]; then
    echo "no crate has changed since ${1:-HEAD}"
    exit 0
fi
# The whole workspace is named, so that cargo picks the same features as everywhere else and builds
# no dependency twice; only the tests of changed crates run.
cargo clippy --workspace --all-targets -- -D warnings
tests=$(cargo test --workspace --lib --no-run --message-format json |
    sed -n 's|.*"executable":"\([^"]*\)".*|\1|p' | sort -u)
for name in $changed; do
    for test in $tests; do
        case "$(basename "$test")" in
        "${name//-/_}"-????????????????)
            echo "== $name"
            (cd "crates/$name" && "$test" --quiet)
            ;;
        esac
    done
done
