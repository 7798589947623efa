#!/usr/bin/env bash
# Times SmolLM2 in BF16 beside llama.cpp (built natively), mistral.rs and transformers, and writes
# docs/benchmarks/lm.md. Fetches packages of 6 GB and compiles llama.cpp, once. Arguments go to bench_lm.py (--help).
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/smollm2.sh
. tools/torch.sh
work=target/bench-lm
mkdir -p "$work"
if [ ! -x "$work/bin/llama-bench" ]; then
    sdist=$work/llama_cpp_python-0.3.36
    "$python" -m pip install --quiet --disable-pip-version-check cmake ninja scikit-build-core
    if [ ! -d "$sdist" ]; then
        "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation \
            --no-binary llama-cpp-python llama-cpp-python==0.3.36 -d "$work"
        tar -xzf "$sdist.tar.gz" -C "$work"
    fi
    tools=$(dirname "$("$python" -c 'import sys; print(sys.executable)')")
    PATH=$tools:$PATH cmake -G Ninja -S "$sdist/vendor/llama.cpp" -B "$work/build" -DCMAKE_BUILD_TYPE=Release \
        -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
        -DLLAMA_BUILD_SERVER=OFF >"$work/cmake.log"
    PATH=$tools:$PATH cmake --build "$work/build" --target llama-bench >>"$work/cmake.log"
    mkdir -p "$work/bin"
    cp "$work/build/bin/llama-bench" "$work/bin/"
fi
"$python" -m pip install --quiet --disable-pip-version-check mistralrs==0.9.5 ||
    echo "note: mistral.rs cannot be had"
cargo build --quiet --release -p deltaloom-cli
cargo build --quiet --release -p deltaloom-lm --example model_speed
release=${CARGO_TARGET_DIR:-target}/release
exec "$python" tools/bench_lm.py --gguf "$smollm2" --work "$work" --speed "$release/examples/model_speed" \
    --program "$release/deltaloom" --lm12m "${DELTALOOM_DATA:-../shared/data}/lm12m/base" "$@"
