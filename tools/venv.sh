# Makes a virtual environment in target/ with some packages, once; to be sourced. `venv` is its folder and `requirements`
# the list of its packages. By default, those of the plain Python reader.
venv=${venv:-target/reader-venv}
requirements=${requirements:-tools/requirements.txt}
if ! cmp -s "$requirements" "$venv/requirements.txt"; then
    echo "making $venv"
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"
    cp "$requirements" "$venv/requirements.txt"
fi
