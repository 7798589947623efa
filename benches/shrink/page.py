"""The page: students sorted by bytes, and beside each rival our curve at equal bytes and at equal divergence."""

import math
from pathlib import Path

from model import MATRICES

HEAD = """# Smaller models beside rivals

Written by `just bench-shrink-peers` (benches/shrink). Every student is LOSSY. The teacher is lm12m:
12.5 million weights in BF16 (25.1 MB), 56 matrices of 320 or 864 columns, and an embedding of 8,192 x
320 that is also the head. It was trained for minutes, so it tolerates more than a finished model:
read the order of the methods, not the size of the harm.

- **KL** is the divergence from the teacher in nats per token, on the last 16,384 tokens of the English
  text and the last 8,192 of the Python text. `deltaloom eval divergence` measured rivals, on what their
  own code dequantises, in F32; ours is in the report of `deltaloom shrink run`, which counts alike. ± is
  one standard error.
- **Text to fit to**: 48 English and 16 Python windows of 256 tokens for everyone who uses text. The
  measured text is none of it.
- **Ours, equal bytes** is the KL of our curve at the bytes of that row, between two of our students
  (KL by its logarithm). Beside a rival that is larger than all of ours and worse than the largest, it
  is the KL of that one. **Ratio** is the rival's KL over it: above 1, we are better. A dash means that
  it is not measured, or that no student of ours compares.
- **Our bytes** is what our curve needs for the KL of that row, as a share of the row's bytes.
- **Packed** is the rival's file after `deltaloom pack`, which is exact and codes its entropy. The last
  ratio is at those bytes: a fair second look, since our students are packed files.
- **llama.cpp, rows joined**: its types with blocks of 256 columns do not fit rows of 320 and 864, and
  it falls back to other types. Here 2, 4 or 8 rows were joined to one before it got the file, and
  parted again afterwards. It shows its types as on a wide model; llama.cpp could not run this file.
- **importance**: with an importance matrix, the mean squares of inputs on the text to fit to.
"""


class Curve:
    """Our students, without those that another one beats in bytes and divergence."""

    def __init__(self, points: list[tuple[int, float]]):
        self.points: list[tuple[int, float]] = []
        for size, kl in sorted(points):
            if kl > 0 and (not self.points or kl < self.points[-1][1]):
                self.points.append((size, kl))

    def at(self, size: int) -> float | None:
        for (small, high), (large, low) in zip(self.points, self.points[1:]):
            if small <= size <= large:
                share = (size - small) / (large - small)
                return math.exp((1 - share) * math.log(high) + share * math.log(low))
        return None

    def below(self, size: int, kl: float) -> float | None:
        """The KL of our largest student, if it is smaller than a rival and better."""
        found = [point for point in self.points[-1:] if point[0] < size and point[1] < kl]
        return found[0][1] if found else None

    def bytes_for(self, kl: float) -> float | None:
        for (small, high), (large, low) in zip(self.points, self.points[1:]):
            if low <= kl <= high:
                share = (math.log(high) - math.log(kl)) / (math.log(high) - math.log(low))
                return (1 - share) * small + share * large
        return None


def number(x: float | None) -> str:
    return "-" if x is None else f"{x:.5f}" if x < 0.1 else f"{x:.3f}"


def factor(kl: tuple[float, float] | None, other: float | None) -> float | None:
    return None if kl is None or other is None else kl[0] / other


def ratio(x: float | None) -> str:
    return "-" if x is None else f"{x:.2f}" if x >= 1 else f"**{x:.2f}**"


def table(rows: list, weights: int, sizes) -> tuple[list[str], list[str]]:
    """Lines of a table, and what it says. `sizes` gives the bytes of a row, and those that it has packed."""
    english, python = (Curve([(sizes(row)[0], row.kl[text][0]) for row in rows if row.ours]) for text in (0, 1))
    lines = [
        "| who | what | bytes | bits | KL, English | KL, Python | ours, equal bytes | ratio | ratio, Python "
        "| our bytes | packed | ratio, packed |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    better, worse, shares = 0, [], []
    for row in sorted(rows, key=lambda row: sizes(row)[0]):
        size, packed = sizes(row)
        kl = [f"{number(found[0])} ± {number(found[1])}" if found else "-" for found in row.kl]
        start = f"{size:,} | {size * 8 / weights:.2f} | {kl[0]} | {kl[1]}"
        if row.ours:
            lines.append(f"| **deltaloom** | {row.method} | {start} | | | | | | |")
            continue
        at = english.at(size) or english.below(size, row.kl[0][0])
        second = row.kl[1] and (python.at(size) or python.below(size, row.kl[1][0]))
        first, second = factor(row.kl[0], at), factor(row.kl[1], second)
        need = english.bytes_for(row.kl[0][0])
        third = factor(row.kl[0], english.at(packed) or english.below(packed, row.kl[0][0]))
        for name, found in ("English", first), ("Python", second), ("English, packed", third):
            if found is not None:
                better += found > 1
                if found <= 1:
                    worse.append(f"{row.rival} {row.method} ({name}: {found:.2f})")
        if need is not None:
            shares.append((need / size, row))
        share = "-" if need is None else f"{need / size:.0%}"
        lines.append(
            f"| {row.rival} | {row.method} | {start} | {number(at)} | {ratio(first)} | {ratio(second)} | {share} "
            f"| {packed:,} | {ratio(third)} |"
        )
    return lines, verdict(better, worse, shares)


def verdict(better: int, worse: list[str], shares: list) -> list[str]:
    total = better + len(worse)
    if not total:
        return ["None of ours is as large or as small as a rival here."]
    lines = [f"Ours has the lower KL in {better} of the {total} comparisons above (ratios, all three columns)."]
    if worse:
        lines.append("A rival has the lower one, or the same, here: " + "; ".join(worse) + ".")
    if shares:
        largest, row = max(shares, key=lambda pair: pair[0])
        closest = f"{row.rival} {row.method}"
        lines.append(f"The rival that comes closest at equal KL is {closest}: ours needs {largest:.0%} of its bytes.")
    return lines


def write_page(path: Path, rows: list, failures: dict, pending: list, versions: str) -> None:
    matrices = [row for row in rows if row.embedding == "BF16"]
    whole = [row for row in rows if row.ours or row.embedding != "BF16"]
    first, first_verdict = table(matrices, MATRICES, lambda row: (row.matrix_bytes, row.packed_matrix_bytes))
    second, second_verdict = table(whole, 12_539_200, lambda row: (row.file_bytes, row.packed_bytes))
    lines = [
        HEAD,
        f"Versions: {versions}.",
        "",
        "## The matrices, with the embedding as it was",
        "Bytes are those of the 56 matrices in the rival's own file, with scales and offsets. Bits are bytes",
        "for each of their 9,912,320 weights. The embedding stays in BF16 (5.2 MB) and is not counted.",
        "",
        *first,
        "",
        *first_verdict,
        "",
        "## The whole file, with the embedding",
        "llama.cpp chooses the type of the embedding. Ours are the students above, whose embedding is exact and",
        "only packed, and those of recipes/lm12m_10x.yaml with other ratios, where a search chooses a rate for each",
        "matrix and for the embedding. Bits are for each of 12,539,200 weights.",
        "",
        *second,
        "",
        *second_verdict,
        "",
        "## What each file has",
        "| who | what | file, bytes | embedding | note |",
        "|---|---|--:|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row.rival, row.method, row.file_bytes)):
        if not row.ours:
            lines.append(f"| {row.rival} | {row.method} | {row.file_bytes:,} | {row.embedding} | {row.note} |")
    if failures:
        lines += ["", "## What did not run", "| case | why |", "|---|---|"]
        for case, why in failures.items():
            lines.append(f"| {' '.join(str(part) for part in case)} | {why} |")
    if pending:
        lines += ["", "## Not measured yet", "The page was written with `--stored`. These wait for another run:", ""]
        lines += [f"- {' '.join(str(part) for part in case)}" for case in pending]
    path.write_text("\n".join(lines) + "\n")
