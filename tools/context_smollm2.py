"""Plans of attention on SmolLM2-135M-Instruct (trained for 8,192 tokens) from 4,096 to 16,384 tokens: loss beside truncation,
facts that are planted and asked for, and what is left of both. Writes a page and its JSON. tools/context_smollm2.sh has the
arguments. --small tries everything at 256 and 512 tokens, as if the model had been trained for 256; its numbers mean nothing."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from context_goals import rope, table, with_error


def plans(trained: int) -> dict[str, dict]:
    quarter = trained // 4
    chunk = {"type": "dual_chunk", "chunk": trained - quarter, "local": quarter, "saturate": trained - 1}
    return {
        "ntk 4": rope("ntk", factor=4),
        "yarn 4": rope("yarn", factor=4),
        "llama3 4": rope("llama3", factor=4),
        "Self-Extend 8": {"default": {"map": {"type": "self_extend", "group": 8, "window": trained // 2}}},
        "dual chunks": {"default": {"map": chunk}},
        "4 sinks and a window": {"default": {"reach": {"window": trained - 4, "sinks": 4}}},
        "no positions, every 4th": {"layers": [{"select": {"every": 4}, "rope": "none"}]},
        "no positions by sensitivity": {"layers": [
            {"select": {"sensitivity": {"text": "text.txt", "tokens": 4 * trained, "count": 4}}, "rope": "none"}]},
    }


def rows_of(report: dict) -> str:
    """What each plan gains and finds, by length."""
    rows = []
    for length in report["lengths"]:
        found = {row["name"]: row for row in report["retrieval"] if row["tokens"] == length["tokens"]}
        for name in ["truncation", *(method["name"] for method in length["methods"])]:
            method = next((method for method in length["methods"] if method["name"] == name), {})
            gain = with_error(method["gain"]) if method.get("gain") else ""
            share = found.get(name, {}).get("forced_choice")
            chosen = f"{share['right']} of {share['of']} ({share['low']:.0%} to {share['high']:.0%})" if share else ""
            rows.append([name, str(length["tokens"]), gain, method.get("word") or "", chosen])
    return table(["plan", "tokens", "gain", "word", "facts chosen"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True)
    parser.add_argument("--smollm2", type=Path, required=True, help="its GGUF file")
    parser.add_argument("--text", type=Path, help="a text of 40,000 tokens or more; default: the documents of this project")
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--write", type=Path, help="a folder for the page; without one, it is printed")
    arguments = parser.parse_args()
    trained, lengths = (256, [256, 512]) if arguments.small else (8192, [4096, 8192, 12288, 16384])
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        documents = [arguments.text] if arguments.text else sorted(Path("docs").rglob("*.md"))
        text.write_text("\n".join(document.read_text() for document in documents))
        words: list[object] = [arguments.program, "context", "test", arguments.smollm2, "--text", text,
                               "--lengths", ",".join(map(str, lengths)), "--sequences", arguments.sequences,
                               "--passages", 0, "--retrieval", "multikey", "--trained", trained, "--json"]
        for number, (name, recipe) in enumerate(plans(trained).items()):
            path = Path(folder) / f"{number}.yaml"
            path.write_text(json.dumps({"context": 1, "name": name, "trained": trained, "controls": "none", **recipe}))
            words += ["--recipe", path]
        report = json.loads(subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, check=True).stdout)
    minutes = (time.monotonic() - start) / 60
    ends = [[end["name"], str(end["tokens"] or "none"), end["reason"]] for end in report["effective_length"]]
    page = (f"# Longer context of SmolLM2-135M-Instruct\n\nWritten by `just context-smollm2`; do not edit. {minutes:.0f} minutes, "
            f"{arguments.sequences} texts of each length; gains over truncation in nats per token, behind {trained} tokens.\n\n"
            f"{rows_of(report)}\n{table(['plan', 'effective length', 'why'], ends)}")
    if arguments.write is None:
        print(page)
    else:
        (arguments.write / "context-smollm2.md").write_text(page)
        (arguments.write / "context-smollm2.json").write_text(json.dumps(report, indent=1) + "\n")
    words_of = {(length["tokens"], method["name"]): method.get("word") for length in report["lengths"] for method in length["methods"]}
    missed = [] if arguments.small else [what for what, holds in [
        ("at most 90 minutes", minutes <= 90),
        ("plain positions degrade above the trained length", words_of[lengths[-1], "unchanged"] == "degrades"),
        ("a window with sinks does not degrade", words_of[lengths[-1], "4 sinks and a window"] != "degrades"),
    ] if not holds]
    print("".join(f"MISSED: {what}\n" for what in missed), end="", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
