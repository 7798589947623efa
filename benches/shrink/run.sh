#!/usr/bin/env bash
# Measures students of lm12m that rivals make, and ours, and writes docs/benchmarks/shrink-peers.md;
# `just bench-shrink-peers` is this script. Options are those of peers.py. Needs the weights, and a C++ compiler for
# llama.cpp, which is built from a source package of PyPI; the rivals go to target/shrink-peers/venv, which sees the torch
# of tools/torch.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tools/torch.sh
here=benches/shrink
work=target/shrink-peers
venv=$work/venv
llama=0.3.36
mkdir -p "$work"
if ! cat "$here"/requirements*.txt | cmp -s - "$venv/requirements.txt"; then
    echo "making $venv"
    python3 -m venv --clear "$venv"
    packages=$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')
    "$python" -c 'import site; print(site.getsitepackages()[0])' >"$packages/torch.pth"
    install() { "$venv/bin/pip" install --quiet --disable-pip-version-check "$@" || echo "note: no ${*: -1}"; }
    grep '==' "$here/requirements.txt" | while read -r package; do install "$package"; done
    grep '==' "$here/requirements-bare.txt" | while read -r package; do install --no-deps "$package"; done
    cat "$here"/requirements*.txt >"$venv/requirements.txt"
fi
library=$work/llama/bin/libllama.so
if [ ! -f "$library" ]; then
    echo "building llama.cpp"
    if "$venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-build-isolation \
        --no-binary llama-cpp-python "llama-cpp-python==$llama" -d "$work"; then
        tar -xzf "$work/llama_cpp_python-$llama.tar.gz" -C "$work"
        PATH=$venv/bin:$PATH
        # -O1: the library only quantises here, and is not timed.
        cmake -G Ninja -S "$work/llama_cpp_python-$llama/vendor/llama.cpp" -B "$work/llama" -DCMAKE_BUILD_TYPE=Release \
            -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DLLAMA_CURL=OFF \
            -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
            -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_COMMON=OFF >"$work/llama.log" &&
            cmake --build "$work/llama" --target llama --parallel 2 >>"$work/llama.log" || echo "note: llama.cpp is not built"
    fi
fi
options=()
if [ -f "$library" ]; then
    options=(--llama "$library")
fi
cargo build --quiet --release -p deltaloom-cli
exec "$venv/bin/python" "$here/peers.py" --program "${CARGO_TARGET_DIR:-target}/release/deltaloom" \
    --data "${DELTALOOM_DATA:-../shared/data}/lm12m" --work "$work" "${options[@]}" "$@"
