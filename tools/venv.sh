# Sets venv to a virtual environment in target/ with the packages of tools/requirements.txt; to be sourced.
venv=target/reader-venv
if ! cmp -s tools/requirements.txt "$venv/requirements.txt"; then
    echo "making $venv"
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r tools/requirements.txt
    cp tools/requirements.txt "$venv/requirements.txt"
fi
