#!/usr/bin/env bash
# Builds the wheel of the Python package, and tests it in an environment of its own.
#   tools/python.sh [--debug] [wheel | lint | bench | memory | fuzz | torch | -- PYTEST ARGUMENTS]
# Without a word: the tests of the numpy layer, the types and, where torch is, the tests of that
# layer. --debug builds without optimisation. DELTALOOM_TORCH names a Python that has torch.
set -euo pipefail
cd "$(dirname "$0")/.."

package=crates/deltaloom-python
profile=(--release)
program=$PWD/target/release/deltaloom
if [ "${1:-}" = --debug ]; then
    profile=(--profile dev)
    program=$PWD/target/debug/deltaloom
    shift
fi
what=${1:-all}
shift || true

venv=$PWD/target/python-venv
torch=$(realpath --no-symlinks "${DELTALOOM_TORCH:-target/torch-venv/bin/python}")
requirements=$package/requirements-test.txt
source tools/venv.sh

wheels=$PWD/target/wheels-python
rm -rf "$wheels"
VIRTUAL_ENV=$venv "$venv/bin/maturin" build --quiet "${profile[@]}" --manifest-path "$package/Cargo.toml" \
    --interpreter "$venv/bin/python" --out "$wheels"
wheel=$(ls "$wheels"/deltaloom-*.whl)
echo "$wheel: $(stat -c %s "$wheel") bytes"
case "$wheel" in
*-cp311-abi3-*) ;;
*) echo "the wheel is not of the stable ABI of Python 3.11" && exit 1 ;;
esac

# The sources for pip, with the files that the program has built in: they lie outside of its crate.
make_sdist() {
    local made=$PWD/target/sdist-python
    rm -rf "$made"
    "$venv/bin/maturin" sdist --manifest-path "$package/Cargo.toml" --out "$made" >/dev/null 2>&1
    "$venv/bin/python" - "$made"/deltaloom-*.tar.gz assets/demo assets/speaker <<'END'
import sys, tarfile
from pathlib import Path

archive = Path(sys.argv[1])
root = archive.name.removesuffix(".tar.gz")
with tarfile.open(archive) as old:
    entries = [(entry, old.extractfile(entry).read()) for entry in old if entry.isfile()]
with tarfile.open(archive, "w:gz") as new:
    from io import BytesIO
    for entry, data in entries:
        new.addfile(entry, BytesIO(data))
    for folder in sys.argv[2:]:
        new.add(folder, f"{root}/{folder}")
END
    cp "$made"/deltaloom-*.tar.gz "$wheels"
}

install() {
    "$1" -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "$wheel"
}

# The script of the wheel is compared with the program.
test_numpy() {
    install "$venv/bin/python"
    # Of the workspace, so that it has the features of what is built already.
    cargo build --quiet "${profile[@]}" --workspace --bin deltaloom
    (cd "$package" && DELTALOOM_PROGRAM="$program" "$venv/bin/python" -m pytest -q -p no:cacheprovider "$@")
}

# The stable ABI: later interpreters load the same wheel.
test_others() {
    local beside=$PWD/target/plain-python found=0 python
    rm -rf "$beside"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$beside" "$wheel"
    for python in python3.12 python3.13 python3.14; do
        if "$python" -c '' 2>/dev/null; then
            PYTHONPATH=$beside "$python" "$package/tests/plain.py" assets/demo
            found=1
        fi
    done
    [ "$found" = 1 ] || echo "skipped: no python3.12, 3.13 or 3.14 (1 layer of tests)"
}

lint() {
    python3 tools/python_api.py --check
    install "$venv/bin/python"
    (cd "$package" && "$venv/bin/mypy")
    "$venv/bin/stubtest" deltaloom._lib --ignore-disjoint-bases
}

# Another interpreter sees the wheel beside its own packages, which stay as they are.
with_torch() {
    if ! "$torch" -c 'import torch, safetensors, pytest' 2>/dev/null; then
        echo "skipped: torch, safetensors and pytest are not in $torch (1 layer of tests)"
        return
    fi
    local beside=${venv%/*}/torch-python
    rm -rf "$beside"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$beside" "$wheel"
    PYTHONPATH=$beside "$torch" "$@"
}

test_torch() {
    (cd "$package" && with_torch -m pytest -q -p no:cacheprovider --confcutdir=tests/torch tests/torch "$@")
}

case "$what" in
all)
    test_numpy
    test_others
    lint
    test_torch
    ;;
--) test_numpy "$@" ;;
wheel) make_sdist ;;
lint) lint ;;
torch) test_torch "$@" ;;
memory) with_torch tools/py_memory.py "$@" ;;
fuzz)
    install "$venv/bin/python"
    "$venv/bin/python" tools/py_fuzz.py "$@"
    # Not every Python has a wheel of it.
    if "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: atheris==3.0.0; then
        "$venv/bin/python" tools/py_fuzz.py "$@" --atheris
    else
        echo "skipped: atheris cannot be installed (1 of 2 ways to change inputs)"
    fi
    ;;
bench)
    install "$venv/bin/python"
    "$venv/bin/python" benches/python/bench.py "$@"
    ;;
*)
    sed -n '2,5s/^# //p' "$0"
    exit 2
    ;;
esac
