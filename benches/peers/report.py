"""The page docs/benchmarks/peers.md, and which goals are reached, from what was measured."""

DELTALOOM, LIMIT = "deltaloom", "memcpy"
MEMORY = {
    "reused": "Memory that a tool frees stays with its process and is used again (`--memory reused`), and the output "
    "buffer of a call that takes one has been written before. This favours the rivals: with the allocator left alone "
    "(`--memory system`), some of those that return new bytes wait for new pages and take up to twice as long.",
    "system": "The system's allocator is left alone (`--memory system`): some tools that return new bytes "
    "wait for new pages. The output buffer of a call that takes one has been written before.",
}


def speed(row: dict, what: str, of: str = "median") -> float:
    """GB of original bytes per second. The fastest round is the one of the least seconds."""
    return row["original_bytes"] / row[f"{what}_seconds"][of] / 1e9


def rows_by_name(case: dict) -> dict[str, dict]:
    return {row["name"]: row for row in case.get("rows", [])}


def share(row: dict) -> float:
    return 100 * row["packed_bytes"] / row["original_bytes"]


def gbps(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def judged(report: dict, goals: list[dict]) -> list[dict]:
    """Each goal with the figure that was measured, and whether it is reached; None where there is nothing to judge."""
    cases = {case["name"]: rows_by_name(case) for case in report["cases"]}
    return [goal | judge(goal, cases.get(goal["case"], {})) for goal in goals]


def judge(goal: dict, rows: dict[str, dict]) -> dict:
    def met(rival: str | None, factor: float) -> tuple[float | None, bool | None]:
        if DELTALOOM not in rows or rival is not None and rival not in rows:
            return None, None
        own = speed(rows[DELTALOOM], goal["what"])
        measured = own if rival is None else own / speed(rows[rival], goal["what"])
        return measured, measured >= factor

    measured, reached = met(goal["rival"], goal["factor"])
    if reached is False and "or" in goal:
        reached = met(goal["or"]["rival"], goal["or"]["factor"])[1] or False
    return {"measured": measured, "reached": reached}


def table(head: list[str], lines: list[list[str]], align: str) -> list[str]:
    rules = {"l": "---", "r": "--:"}
    rows = [head, [rules[side] for side in align], *lines]
    return ["| " + " | ".join(row) + " |" for row in rows]


def case_part(case: dict) -> list[str]:
    text = ["", f"### {case['title']}", ""]
    if "skipped" in case:
        return [*text, f"**Skipped: {case['skipped']}.**"]
    rows = rows_by_name(case)
    own = rows.get(DELTALOOM)
    if not case["delta"]:
        about = f"{case['dtype']}, without a base"
    else:
        about = f"{case['dtype']}, {100 * case['changed']:.1f} % of the elements differ from the base"
    text += [f"`{case['name']}`: {about}.", ""]
    for name, why in case["absent"].items():
        text += [f"**{name} is absent: {why}**", ""]
    lines = []
    for name, row in sorted(rows.items(), key=lambda item: (item[0] == LIMIT, item[0] != DELTALOOM, share(item[1]))):
        size = ["", ""] if name == LIMIT else [f"{share(row):.2f}", f"{1 / share(row) * 100:.2f}"]
        line = [f"**{name}**" if name == DELTALOOM else name, *size]
        for what in ("encode", "decode"):
            slowest, fastest = speed(row, what, "max"), speed(row, what, "min")
            line.append(f"{gbps(speed(row, what))} ({gbps(slowest)} to {gbps(fastest)})")
        line.append(f"{100 * speed(row, 'decode') / speed(rows[LIMIT], 'decode'):.0f} %" if LIMIT in rows else "")
        for what in ("encode", "decode"):
            line.append("" if own is None or name == DELTALOOM else f"{speed(own, what) / speed(row, what):.2f}")
        lines.append(line)
    head = ["tool", "packed %", "ratio", "encode GB/s", "decode GB/s", "decode, of memcpy"]
    return text + table([*head, "deltaloom encodes, times", "deltaloom decodes, times"], lines, "lrrrrrrr")


def wish(rival: str | None, factor: float) -> str:
    return f"{factor:g} GB/s" if rival is None else f"{factor:g} times {rival}"


def goals_part(report: dict) -> list[str]:
    titles = {case["name"]: case["title"] for case in report["cases"]}
    lines = []
    for goal in report["goals"]:
        aim = wish(goal["rival"], goal["factor"])
        if "or" in goal:
            aim += f", or {wish(**goal['or'])}"
        measured = "" if goal["measured"] is None else f"{goal['measured']:.2f}"
        verdict = {True: "reached", False: "**not reached**", None: "**not measured**"}[goal["reached"]]
        lines.append([titles.get(goal["case"], goal["case"]), goal["what"], f"at least {aim}", measured, verdict])
    return ["", "## Goals", "", *table(["case", "what", "goal", "measured", ""], lines, "lllrl")]


def absent_tools(report: dict) -> dict[str, list[str]]:
    """The tools that are absent from some case, and from which."""
    absent: dict[str, list[str]] = {}
    for case in report["cases"]:
        for name in case.get("absent", {}):
            absent.setdefault(name, []).append(case["name"])
    return absent


def page(report: dict) -> str:
    machine, isa = report["machine"], report["machine"]["isa"]
    versions = {tool["name"]: tool["version"] or "absent" for tool in report["tools"]}
    names = [f"{name} {versions[name]}" for name in versions if name not in (LIMIT, "BitX", "XOR + zstd -1")]
    text = [
        "# deltaloom beside its rivals",
        "",
        "Written by `just bench-peers`, never by hand; [README.md](README.md) says how the numbers are made.",
        "",
        f"- **Machine**: {machine['cpu']}, {machine['cores']} cores, {machine['os']}"
        + (f"; deltaloom used {isa}" if isa else "") + ".",
        f"- **Command**: `{report['command']}`, {report['date']}.",
        f"- **Versions**: {', '.join(names)}; Python {report['python']}.",
        "- **Method**: every tool runs on one core with one thread. "
        f"{report['rounds']} rounds per case, in each of which every tool runs once, one after the other, from another "
        "start each time. Before them each tool runs once to warm up, and what it restores is compared with the "
        "original byte for byte. Speeds are medians over the rounds (slowest and fastest in brackets) in GB (10^9) of "
        "original bytes per second, sizes are exact.",
        "- **What is called**: all tools go from memory to memory. deltaloom runs in a process of its own "
        "(`deltaloom bench`): encoding makes the whole container with index and digests, decoding opens it and checks "
        "the checksum of every chunk. The rivals get the bytes of all tensors joined to one buffer, so they neither "
        "find tensors nor store names and shapes.",
        f"- **Memory**: {MEMORY[report['memory']]}",
        "- **Limit**: memcpy copies the original bytes twice; the first copy stands under encode, the second, of bytes "
        "that are in the cache where they fit, under decode.",
        "- **Weights**: lm12m is a 12.5 M-parameter LLaMA-shaped model; it and its fine-tunes were trained for minutes "
        "on two cores. all-MiniLM-L6-v2 is as published. The simulated pair moves weights of the lm12m base by one ULP "
        "up or down, chosen with a fixed seed.",
        *[f"- **Absent: {name} from {', '.join(where)}**" for name, where in absent_tools(report).items()],
        "",
        "![decode speed and size of every tool](peers.svg)",
        *goals_part(report),
        "",
        "## Cases",
        "",
        "The last two columns say how many times as fast as the tool deltaloom is.",
    ]
    for case in report["cases"]:
        text += case_part(case)
    calls = [[t["name"], t["version"] or "**absent**", t["call"]] for t in report["tools"] if "call" in t]
    text += ["", "## How each tool was called", "", *table(["tool", "version", "call"], calls, "lll")]
    return "\n".join(text) + "\n"
