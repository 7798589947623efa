"""Runs student_reader.py over the golden student: its matrices must have the bits that are kept beside it, and students
that docs/student.md forbids must be refused."""
import json
import shutil
import sys
import tempfile
from pathlib import Path

import student_reader

GOLDEN = Path(__file__).parents[1] / "crates/deltaloom-shrink/tests/students/forms"
# Changes of the description: keys on the path to a value, and the new value.
FORBIDDEN = [
    (["schema"], 2), (["lossy"], False),
    (["matrices", "dense.f32.weight", "shape"], [6, 20]),
    (["matrices", "dense.f32.weight", "form", "dtype"], "F64"),
    (["matrices", "dense.f32.weight", "form", "kind"], "gaps"),
    (["matrices", "zero.weight", "shape"], [1 << 18, 1 << 18]),
    (["matrices", "codes.all.weight", "form", "group"], 0),
    (["matrices", "codes.all.weight", "form", "row_factors"], 1),
    (["matrices", "codes.all.weight", "form", "zero_points"], True),
    (["matrices", "sparse.any.weight", "form", "count"], 1),
    (["matrices", "sparse.codes.weight", "form", "pattern", "n_of_m", "keep"], 1),
    (["matrices", "sparse.codes.weight", "form", "pattern", "n_of_m", "of"], 2),
    (["matrices", "rank.codes.weight", "form", "rank"], 0),
    (["matrices", "rank.codes.weight", "form", "rank"], 7),
    (["matrices", "sum.deepest.weight", "form", "parts", 0, "parts", 0, "parts", 0, "parts", 0],
     {"kind": "sum", "parts": [{"kind": "zero"}]}),
]


def is_refused(change, folder):
    keys, value = change
    student = json.loads((GOLDEN / "student.json").read_text())
    place = student
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (folder / "student.json").write_text(json.dumps(student))
    try:
        student_reader.read(folder)
    except ValueError:
        return True
    return False


def main():
    faults = []
    decoded = student_reader.Tensors(GOLDEN / "decoded.safetensors")
    found = student_reader.read(GOLDEN)
    if found.keys() != decoded.header.keys():
        faults.append("it has other matrices")
    for name, values in found.items():
        if values.tobytes() != decoded.find(name, "F32", list(values.shape)).tobytes():
            faults.append(f"{name} decodes to other bits")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(GOLDEN / "student.safetensors", folder)
        faults += [f"not refused: {change}" for change in FORBIDDEN if not is_refused(change, Path(folder))]
    for fault in faults:
        print(f"FAILED {GOLDEN}: {fault}")
    if not faults:
        print(f"{len(found)} matrices of a student read alike, {len(FORBIDDEN)} bad students refused")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
