#!/usr/bin/env python3
"""Reads an event file with TensorBoard's own reader and compares it with what the page of the same series says.

Arguments: the folder of the event file, and the HTML page whose table "Ratio of each step" has the same values.
`just check-tensorboard` makes both and runs this in an environment of its own.
"""

import csv
import html
import io
import math
import re
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def main():
    events, page = sys.argv[1], Path(sys.argv[2]).read_text(encoding="utf-8")
    section = re.search(r'<section id="ratio-of-each-step">.*?</section>', page, re.S).group(0)
    table = html.unescape(re.search(r"<pre>(.*?)</pre>", section, re.S).group(1))
    rows = list(csv.DictReader(io.StringIO(table)))

    read = EventAccumulator(events, size_guidance={"scalars": 0})
    read.Reload()
    tags = read.Tags()["scalars"]
    curves = {"series/ratio": "ratio", "series/bits_per_weight": "bits per weight", "series/changed_fraction": "changed"}
    compared = 0
    for tag, column in curves.items():
        expected = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
        found = [(event.step, event.value) for event in read.Scalars(tag)]
        if [step for step, _ in found] != [step for step, _ in expected]:
            sys.exit(f"{tag}: other steps than the page")
        for (step, a), (_, b) in zip(found, expected):
            if not math.isclose(a, b, rel_tol=1e-6):
                sys.exit(f"{tag}, step {step}: {a} in the events, {b} on the page")
        compared += len(found)
    layers = [tag for tag in tags if tag.startswith("changed_fraction/")]
    if not layers:
        sys.exit("no layer has a curve")
    print(f"{len(tags)} curves read, {compared} values as on the page, {len(layers)} layers")


if __name__ == "__main__":
    main()
