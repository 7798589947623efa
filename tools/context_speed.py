"""What plans of attention cost on lm12m: time of a prompt and of decoding beside plain attention, in turns, and bytes of keys
and values. Writes docs/benchmarks/context-speed.md. Use an otherwise idle machine.

    python3 tools/context_speed.py DELTALOOM [--data FOLDER] [--rounds 7] [--write docs/benchmarks]
"""

import argparse
import pathlib
import sys

from context_goals import Program, plans, table

# Most time over plain attention at 4,096 tokens: of a prompt, and of one token more.
PREFILL, DECODE = 1.15, 1.5


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", default="docs/benchmarks")
    arguments = parser.parse_args()
    program, base = Program(arguments.program), pathlib.Path(arguments.data) / "lm12m/base"
    if not base.is_dir():
        print(f"note: {arguments.data} has no lm12m, nothing measured")
        return 0
    recipes = plans(256)
    looked_at = ["llama3 4", "no positions", "window 256", "4 sinks, window 252", "Self-Extend 8, 128", "dual chunks 192, 255"]
    parts, missed = [], []
    for tokens, names in [(4096, looked_at), (8192, ["window 256"])]:
        report = program.test(base, base / "val_english.u16", {name: recipes[name] for name in names}, "--sequences", 1,
                              "--lengths", tokens, "--passages", 0, "--rounds", arguments.rounds)
        kept = {row["name"]: row for row in report["memory"]}
        times = {row["name"]: (1 / row["prefill_ratio"], 1 / row["decode_ratio"]) for row in report["speed"]}
        rows = []
        for row in report["speed"]:
            name, (prefill, decode) = row["name"], times[row["name"]]
            rows.append([name, f"{row['prefill_tokens_per_second']:.0f}", f"{prefill:.2f}", f"{row['decode_tokens_per_second']:.0f}",
                         f"{decode:.2f}", f"{kept[name]['counted_bytes'] / 1e6:.2f}"])
        parts.append(f"## {tokens:,} tokens\n\n" + table(
            ["plan", "prompt, tokens/s", "time", "decoding, tokens/s", "time", "keys and values, MB"], rows))
        goals = []
        if tokens == 4096:
            for name in ["Self-Extend 8, 128", "dual chunks 192, 255"]:
                goals += [(f"{name}, prompt at most {PREFILL}", times[name][0], times[name][0] <= PREFILL),
                          (f"{name}, decoding at most {DECODE}", times[name][1], times[name][1] <= DECODE)]
            goals += [(f"{name}, prompt below 1", times[name][0], times[name][0] < 1) for name in ["window 256", "4 sinks, window 252"]]
        else:
            share = kept["window 256"]["formula_bytes"] / kept["unchanged"]["formula_bytes"]
            goals += [("window 256, prompt at most 0.5", times["window 256"][0], times["window 256"][0] <= 0.5),
                      ("window 256, 1/32 of the bytes", share, share == 1 / 32)]
        parts.append(table([f"goal at {tokens:,} tokens", "found", ""],
                           [[what, f"{value:.3f}", "" if holds else "missed"] for what, value, holds in goals]))
        missed += [what for what, _, holds in goals if not holds]
    head = ("# What plans of attention cost\n\nWritten by `just context-speed`; do not edit. lm12m, two threads, keys and values in "
            f"BF16; medians of {arguments.rounds} rounds in turns. `time` is that of plain attention times this; decoding is 16 "
            "tokens behind the prompt.\n")
    (pathlib.Path(arguments.write) / "context-speed.md").write_text("\n".join([head, *parts]))
    print("".join(f"MISSED: {what}\n" for what in missed), end="", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
