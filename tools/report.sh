#!/usr/bin/env bash
# Makes example pages, pictures and event files, and checks them with what will show them.
# `page [FILE...]`: headless Chromium; without a file, the examples. `tensorboard`: TensorBoard's own reader.
# Needs Python 3.11 with pip and a Rust compiler, and for pages Chromium; makes its own virtual environment in target/.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/report-venv
wanted=tools/requirements-report.txt
if [ ! -x "$venv/bin/python" ]; then
    python3.11 -m venv "$venv"
fi
if ! cmp -s "$wanted" "$venv/requirements.txt"; then
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$venv/requirements.txt"
fi

what=${1:?page or tensorboard}
shift
pages=target/report-pages
if [ "$what" = tensorboard ] || [ $# -eq 0 ]; then
    base="${DELTALOOM_DATA:-../shared/data}/lm12m/base"
    arguments=("$pages")
    if [ -d "$base" ]; then
        arguments+=("$base")
    fi
    cargo run --quiet -p deltaloom-report --example report_pages -- "${arguments[@]}"
fi
case $what in
page)
    if [ $# -eq 0 ]; then
        set -- "$pages"/*.html "$pages"/series-200 "$pages"/odd-names
    fi
    exec "$venv/bin/python" tools/check_page.py --screenshots target/report-screenshots "$@"
    ;;
tensorboard)
    exec "$venv/bin/python" tools/check_tensorboard.py "$pages/events" "$pages/series-200.html"
    ;;
*)
    echo "report.sh: page or tensorboard, not $what" >&2
    exit 2
    ;;
esac
