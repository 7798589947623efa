# Sets python to an interpreter with the packages of tools/requirements-torch.txt; to be sourced. That is
# $DELTALOOM_TORCH if it is set, else a virtual environment in target/ (5.6 GB, from PyPI). Without one, says so and ends.
python=${DELTALOOM_TORCH:-target/torch-venv/bin/python}
if [ -z "${DELTALOOM_TORCH:-}" ] && ! cmp -s tools/requirements-torch.txt target/torch-venv/requirements.txt; then
    echo "making target/torch-venv"
    if ! { python3 -m venv --clear target/torch-venv &&
        target/torch-venv/bin/pip install --quiet --disable-pip-version-check -r tools/requirements-torch.txt; }; then
        echo "skipped: torch and transformers cannot be had"
        exit 0
    fi
    cp tools/requirements-torch.txt target/torch-venv/requirements.txt
fi
