"""Runs student_reader.py over the golden students: their matrices must have the bits that are kept beside them, and
students that docs/student.md forbids must be refused."""
import json
import shutil
import sys
import tempfile
from pathlib import Path

import student_reader

STUDENTS = Path(__file__).parents[1] / "crates/deltaloom-shrink/tests/students"
GOLDEN, ON_BASE = STUDENTS / "forms", STUDENTS / "base"
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
    (["matrices", "zero.weight", "form", "kind"], "base"), (["base"], "0" * 64), (["from_base"], ["norm.weight"]),
]
FORBIDDEN_ON_BASE = [
    (["base"], "0" * 64), (["from_base"], ["f32.weight"]), (["from_base"], ["other.weight"]),
    (["from_base"], ["f32.weight.codes"]),
    (["matrices", "turned.weight", "form"], {"kind": "base"}),
    (["matrices", "bf16.weight", "form", "parts", 1, "left"], {"kind": "base"}),
    (["matrices", "f32.weight", "shape"], [21, 6]),
]


def is_refused(change, golden, base, folder):
    keys, value = change
    student = json.loads((golden / "student.json").read_text())
    place = student
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (folder / "student.json").write_text(json.dumps(student))
    try:
        student_reader.read(folder, base)
    except ValueError:
        return True
    return False


def faults_of(golden, base, forbidden):
    decoded = student_reader.Tensors(golden / "decoded.safetensors")
    found = student_reader.read(golden, base)
    if found.keys() != decoded.header.keys():
        yield "it has other matrices"
    for name, values in found.items():
        if values.tobytes() != decoded.find(name, "F32", list(values.shape)).tobytes():
            yield f"{name} decodes to other bits"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(golden / "student.safetensors", folder)
        for change in forbidden:
            if not is_refused(change, golden, base, Path(folder)):
                yield f"not refused: {change}"
        unchanged = ["schema"], 1
        if not is_refused(unchanged, golden, ON_BASE / "base" if base is None else None, Path(folder)):
            yield "not refused: a base, or none"


def main():
    students = [(GOLDEN, None, FORBIDDEN), (ON_BASE, ON_BASE / "base", FORBIDDEN_ON_BASE)]
    faults = [(golden, fault) for golden, *rest in students for fault in faults_of(golden, *rest)]
    for golden, fault in faults:
        print(f"FAILED {golden}: {fault}")
    if not faults:
        print(f"{len(students)} students read alike, {len(FORBIDDEN + FORBIDDEN_ON_BASE)} bad ones refused")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
