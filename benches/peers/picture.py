"""docs/benchmarks/peers.svg: for each case a panel of bars, decode and encode speed of every tool."""
from html import escape

from report import DELTALOOM, LIMIT, gbps, rows_by_name, share, speed

COLUMNS, PANEL, GAP, MARGIN = 2, 470, 30, 20
TITLE, ROW, BAR, STEP = 48, 30, 9, 12
NAMES, SIZES, BARS = 0, 148, 158  # left edge of the names, right edge of the sizes, left edge of the bars
FIGURES = 46  # room for the figure behind the longest bar

STYLE = """
  text { font: 12px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
  .title { font-weight: 600; font-size: 13px; }
  .quiet { fill: #59636e; font-size: 11px; } .figure { fill: #59636e; font-size: 10px; }
  .own { font-weight: 600; }
  .decode { fill: #8c959f; } .encode { fill: #d1d9e0; }
  .own-decode { fill: #0969da; } .own-encode { fill: #80ccff; }
  .axis { stroke: #d1d9e0; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .quiet, .figure { fill: #9198a1; }
    .decode { fill: #7d8590; } .encode { fill: #3d444d; }
    .own-decode { fill: #4493f8; } .own-encode { fill: #1f4f8f; }
    .axis { stroke: #3d444d; }
  }
"""


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def bar(x: float, y: float, width: float, kind: str) -> str:
    return f'<rect x="{x:.0f}" y="{y:.0f}" width="{max(width, 1):.1f}" height="{BAR}" rx="1" class="{kind}"/>'


def panel(case: dict, left: float, top: float) -> list[str]:
    rows = rows_by_name(case)
    limit = rows.pop(LIMIT, None)
    order = sorted(rows.values(), key=share)
    fastest = max(speed(row, what) for row in order for what in ("encode", "decode"))
    scale = (PANEL - BARS - FIGURES) / fastest
    about = "no base" if not case["delta"] else f"{100 * case['changed']:.0f} % changed"
    if limit:
        about += f"; memcpy {gbps(speed(limit, 'decode'))} GB/s"
    shapes = [text(left, top + 14, case["title"], "title"), text(left, top + 31, about, "quiet")]
    axis = left + BARS - 1
    bottom = top + TITLE + ROW * len(order)
    shapes.append(f'<line x1="{axis}" y1="{top + TITLE - 4}" x2="{axis}" y2="{bottom - 4}" class="axis"/>')
    for index, row in enumerate(order):
        y = top + TITLE + ROW * index
        own = row["name"] == DELTALOOM
        prefix = "own-" if own else ""
        shapes.append(text(left + NAMES, y + 14, row["name"], "own" if own else ""))
        shapes.append(text(left + SIZES, y + 14, f"{share(row):.1f} %", "own" if own else "quiet", "end"))
        for line, what in enumerate(("decode", "encode")):
            width = speed(row, what) * scale
            at = y + line * STEP
            shapes.append(bar(left + BARS, at, width, prefix + what))
            shapes.append(text(left + BARS + max(width, 1) + 4, at + BAR - 1, gbps(speed(row, what)), "figure"))
    return shapes


def picture(report: dict) -> str:
    cases = [case for case in report["cases"] if case.get("rows")]
    shapes, top, width = [], MARGIN + 40, MARGIN * 2 + COLUMNS * PANEL + (COLUMNS - 1) * GAP
    for start in range(0, len(cases), COLUMNS):
        together = cases[start : start + COLUMNS]
        for column, case in enumerate(together):
            shapes += panel(case, MARGIN + column * (PANEL + GAP), top)
        most = max(len([row for row in case["rows"] if row["name"] != LIMIT]) for case in together)
        top += TITLE + ROW * most + GAP
    head = [
        text(MARGIN, MARGIN + 4, "Packed size, % of the original, and GB/s of original bytes on one core", "title"),
        bar(MARGIN, MARGIN + 15, 24, "decode"),
        text(MARGIN + 30, MARGIN + 23, "decode", "quiet"),
        bar(MARGIN + 80, MARGIN + 15, 24, "encode"),
        text(MARGIN + 110, MARGIN + 23, "encode", "quiet"),
        text(MARGIN + 165, MARGIN + 23, "deltaloom in blue, smallest file first; own scale per panel", "quiet"),
    ]
    box = f'xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" viewBox="0 0 {width} {top}"'
    label = 'role="img" aria-label="Packed size and speed of deltaloom and its rivals on each case"'
    return "\n".join([f"<svg {box} {label}>", f"<style>{STYLE}</style>", *head, *shapes, "</svg>"]) + "\n"
