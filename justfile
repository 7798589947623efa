# The recipes of this repository; CONTRIBUTING.md explains them.

# The folder that holds lm12m/, where it is.
export DELTALOOM_DATA := env("DELTALOOM_DATA", "../shared/data")

xtask := "cargo run --quiet --release -p xtask --"

# List the recipes
default:
    @just --list --unsorted

# Run all tests
test:
    cargo test --workspace

# Format, lint and test the crates that differ from COMMIT (their unit tests): the check between two edits
quick commit="HEAD":
    tools/quick.sh {{ commit }}

# Check formatting, lints, spelling and dependencies; changes nothing
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    @just _with typos typos-cli typos
    @just _with cargo-deny cargo-deny cargo deny check licenses bans sources

# Run a tool where it is installed
_with program package +command:
    @if command -v {{ program }} >/dev/null; then {{ command }}; else echo "note: {{ program }} is missing, not run; install it with: cargo install {{ package }} --locked"; fi

# Check that imports between crates and rooms go down the order of ARCHITECTURE.md, and the width of comments
house:
    cargo run --quiet -p xtask -- rooms --check
    cargo run --quiet -p xtask -- comments --check

# What must pass before a merge
ci: lint
    .ci/run

# ci, and 30 s of each fuzz target
ci-long: ci
    just fuzz open_container 30
    just fuzz decode_chunk 30
    just fuzz roundtrip 30
    just fuzz open_archive 30
    just fuzz pickle 30
    just fuzz texts 30
    just fuzz gguf 30
    just fuzz config_json 30

# Decode every golden container, and the lm12m pairs, with the Python reader
reader:
    tools/reader.sh

# Pack the pairs of tools/field and write docs/benchmarks/field.md; fails if a ratio misses its bar
field:
    tools/field.sh --out docs/benchmarks/field.md

# Add missing golden containers and fuzz seeds (--check: restore them all)
golden *check:
    {{ xtask }} golden {{ check }}
    {{ xtask }} corpus {{ check }}

# Record the packed sizes (--check: fail if one has grown)
sizes *check:
    {{ xtask }} sizes {{ check }}

# Write the table of the README from the recorded sizes (--check: compare)
readme-numbers *check:
    {{ xtask }} readme-numbers {{ check }}

# Write docs/api.md (--check: compare)
api *check:
    {{ xtask }} api {{ check }}

# Write docs/cli.md (--check: compare)
cli-reference *check:
    {{ xtask }} cli-reference {{ check }}

# Run the threshold methods (LOSSY) on lm12m beside the exact container and write docs/benchmarks/tpde.md; needs numpy
bench-tpde *options:
    cargo build --quiet --release -p deltaloom-cli
    python3 benches/series/tpde.py --program target/release/deltaloom --data "$DELTALOOM_DATA/lm12m" {{ options }}

# Merge the lm12m models by usual rules and pack the merges: every one must be found
merges:
    {{ xtask }} merges

# Count the kernels' instructions with valgrind and record them (--check: fail if a count has grown by more than 2 %)
instructions *check:
    {{ xtask }} instructions {{ check }}

# Cut the demo weights from lm12m (--check: compare)
assets *check:
    {{ xtask }} assets {{ check }}

# Test object stores against a real S3 server on loopback
test-s3 *args:
    tools/s3.sh {{ args }}

# Sample where the processor time of pack and unpack goes, with Linux perf, and write docs/benchmarks/breakdown.* (--runs N)
breakdown *args:
    {{ xtask }} breakdown {{ args }}

# Measure deltaloom beside its rivals and write docs/benchmarks/peers.* (--help lists the options)
bench-peers *args:
    benches/peers/run.sh {{ args }}

# Pack dequantised tensors of real packages and print their sizes (--before OTHER: beside another deltaloom)
bench-grid *args:
    benches/grid/run.sh {{ args }}

# Two writers of one series that are killed at random: nothing may be lost (--help lists the options)
series-kills *args:
    cargo build --release -p deltaloom-cli
    benches/series/python.sh benches/series/kills.py {{ args }}

# Restore every step of a generated series of 100 MB checkpoints: hops, time and memory (--help lists the options)
series-get *args:
    cargo build --release -p deltaloom-cli
    benches/series/python.sh benches/series/get.py {{ args }}

# Count what adding, listing and restoring ask of a store up to 10,000 steps, and write docs/benchmarks/series-scale.*
series-scale *args:
    {{ xtask }} series-scale {{ args }}

# Open pages and pictures in headless Chromium, light and dark: overlaps, console, network (no FILE: examples)
check-page *files:
    tools/report.sh page {{ files }}

# Compare the loss of lm12m, computed on packed weights layer by layer, with what transformers gives; needs the weights
check-layer:
    tools/check_layer.sh

# The loss of lm12m as a model in chunks of any size, and its packed fine-tunes against the dense ones, bit for bit
check-model: check-divergence check-smollm2
    tools/check_model.sh

# The openai package and curl against `deltaloom serve`; fetches the package
check-clients:
    tools/clients.sh clients

# lm-evaluation-harness against `deltaloom serve`: its numbers must be those of `deltaloom eval`; fetches it
check-harness:
    tools/clients.sh harness

# Fine-tunes of lm12m come and go under `deltaloom serve` for half an hour (--minutes N): nothing may stay behind
check-endurance *args:
    tools/clients.sh endurance {{ args }}

# 16 fine-tunes of lm12m behind `deltaloom serve`: exactness, memory, budgets, overload; writes docs/benchmarks/serving.md
bench-serve:
    tools/clients.sh serve

# SmolLM2 (GGUF) and lm12m beside transformers in FP32: logits, greedy text, perplexity, chat templates (--write PAGE); fetches torch
check-smollm2 *args:
    tools/check_smollm2.sh {{ args }}

# lm12m with recipes of attention, exported for transformers, beside transformers in FP32; fetches torch
check-context:
    tools/check_context.sh

# Plans of attention for longer context on lm12m and lm12t, beside truncation; writes docs/benchmarks/context.md; needs the weights
context-goals *args:
    cargo build --release -p deltaloom-cli
    python3 tools/context_goals.py target/release/deltaloom --data {{ env("DELTALOOM_DATA", "../shared/data") }} {{ args }}

# Facts that plans of attention find on the synthetic model of assets/recall; writes docs/benchmarks/recall.md
recall-table *args:
    cargo build --release -p deltaloom-cli
    python3 tools/recall_table.py target/release/deltaloom {{ args }}

# What plans of attention cost in time and memory on lm12m; writes docs/benchmarks/context-speed.md; use an idle machine
context-speed *args:
    cargo build --release -p deltaloom-cli
    python3 tools/context_speed.py target/release/deltaloom --data {{ env("DELTALOOM_DATA", "../shared/data") }} {{ args }}

# Keys and values of 32,768 tokens in a file: the bits of memory, and 64 MB resident; --tokens and --layers make it shorter
context-kv-file *args:
    tools/context_kv_file.sh {{ args }}

# Plans of attention on SmolLM2 at 4,096 to 16,384 tokens, with facts to find; --small tries it; fetches the model
context-smollm2 *args:
    tools/context_smollm2.sh {{ args }}

# Students of lm12m by the recipes in recipes/goals, beside what is wanted; writes docs/benchmarks/shrink.md; needs the weights
shrink-goals *args:
    cargo build --release --quiet
    python3 tools/shrink_goals.py {{ args }}

# Students of lm12m that rivals make, beside ours; writes docs/benchmarks/shrink-peers.md; fetches torch and rivals, builds llama.cpp
bench-shrink-peers *args:
    benches/shrink/run.sh {{ args }}

# `eval divergence` of lm12m and its rounding to 4 bits beside a computation in numpy
check-divergence:
    tools/check_divergence.sh

# Read example event files with TensorBoard's own reader
check-tensorboard:
    tools/report.sh tensorboard
# Train the lm12m base on and write a BF16 snapshot of every step (OUT, then arguments of make_series.py); fetches jax
make-series *args:
    benches/series/run.sh {{ args }}

# Train the bundled model and its fine-tunes in the new folder OUT and pack them in OUT/packed; fetches torch
make-speaker out:
    tools/make_speaker.sh {{ out }}

# Train the synthetic model that recalls in the new folder OUT and pack it as OUT/recall.loom; fetches torch
train-recall out *args:
    tools/train_recall.sh {{ out }} {{ args }}

# Pack a series that `just make-series` made step by step, with and without histories, and print the sizes
bench-history folder *args:
    cargo run --release -p xtask -- history {{ folder }} {{ args }}

# Run a fuzz target, one of the files of fuzz/fuzz_targets
fuzz target seconds="30":
    tools/fuzz.sh {{ target }} {{ seconds }}

# Test the NEON kernels in an emulator (qemu-user, and a compiler for aarch64)
test-aarch64 *args:
    tools/aarch64.sh {{ args }}

# Time SmolLM2 beside llama.cpp, mistral.rs and transformers: docs/benchmarks/lm.md (--rounds N)
bench-lm *args:
    tools/bench_lm.sh {{ args }}

# Products in pair order on every instruction set of this machine: docs/benchmarks/products.md
bench-products:
    cargo bench --quiet -p deltaloom-kernels --bench pairs > target/products.md
    mv target/products.md docs/benchmarks/products.md

# Build the wheel of the Python package, and its sources for pip, in target/wheels-python
py-wheel:
    tools/python.sh wheel

# Build the wheel and test it with numpy (arguments of pytest, such as -k threads)
py-test *args:
    tools/python.sh -- {{ args }}

# Check the types of the Python package (mypy --strict), and its stubs against the wheel
py-lint:
    tools/python.sh lint

# Test the wheel with torch, where torch is (DELTALOOM_TORCH names a Python that has it)
py-test-torch *args:
    tools/python.sh torch {{ args }}

# Throw damaged bytes and odd calls at the Python package, by chance and led by atheris
py-fuzz seconds="30" *args:
    tools/python.sh fuzz {{ seconds }} {{ args }}

# Measure the memory of a model of transformers, loaded plain and from a container (--check: compare with the goal)
py-memory *args:
    tools/python.sh memory {{ args }}

# Measure the Python package: import, speed beside the program, memory, threads, Ctrl-C (--megabytes N,N; FOLDER with base and tuned)
py-bench *args:
    tools/python.sh bench {{ args }}
