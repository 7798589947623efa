"""Measures deltaloom and its rivals on the same weights, one thread each, and writes docs/benchmarks/peers.*.

`just bench-peers` makes the virtual environment and calls this; docs/benchmarks/README.md says how the numbers
are made.
"""
import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What the system's allocator (glibc) does with large buffers that are freed. Left alone it gives some of them back, and
# new pages cost about as much time as a fast decoder takes to fill them. All processes measured get the same.
MEMORY = {"reused": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36)}, "system": {}}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="just bench-peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds per case (default 5)")
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help="only this case; repeatable")
    parser.add_argument("--large", action="store_true", help="also all-mpnet-base-v2, a download of 404 MB")
    parser.add_argument(
        "--memory",
        choices=MEMORY,
        default="reused",
        help="reused: freed memory stays with the process, which favours the rivals (default); system: the allocator "
        "is left alone and takes new pages for some large buffers",
    )
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)), help="the core that all run on")
    parser.add_argument("--deltaloom", type=Path, default=ROOT / "target/release/deltaloom", metavar="PROGRAM")
    parser.add_argument("--goals", type=Path, default=Path(__file__).with_name("goals.json"), metavar="FILE")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks", metavar="FOLDER")
    parser.add_argument("--report-only", action="store_true", help="write page and picture from FOLDER/peers.json")
    return parser.parse_args()


def with_environment(options: argparse.Namespace) -> None:
    """Starts this program again with the environment that memory allocation and thread pools read at start-up."""
    wanted = MEMORY[options.memory] | {"OMP_NUM_THREADS": "1", "PEERS_MEMORY": options.memory}
    if os.environ.get("PEERS_MEMORY") != options.memory:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    return {"cpu": cpu, "cores": os.cpu_count(), "os": f"{system}, {platform.machine()}", "isa": None}


def measure(options: argparse.Namespace) -> dict:
    from cases import RECIPES, Missing, Sources
    from measure import DELTALOOM, run_case
    from tools import RIVALS, Memcpy

    os.sched_setaffinity(0, {options.cpu})
    data = Path(os.environ.get("DELTALOOM_DATA", ROOT / "../shared/data"))
    sources = Sources(data, ROOT / "target/peers")
    names = [recipe.name for recipe in RECIPES]
    if unknown := set(options.case) - set(names):
        sys.exit(f"error: no case {', '.join(unknown)}; there are {', '.join(names)}")

    report = {
        "command": " ".join(["just bench-peers", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "rounds": options.rounds,
        "memory": options.memory,
        "python": platform.python_version(),
        "tools": [
            {"name": tool.name, "package": tool.package, "version": version(tool.package), "call": tool.call}
            for tool in (*RIVALS, Memcpy)
        ],
        "cases": [],
    }
    for recipe in RECIPES:
        if options.case and recipe.name not in options.case or recipe.large and not options.large:
            continue
        entry = {"name": recipe.name, "title": recipe.title}
        report["cases"].append(entry)
        try:
            case = recipe.load(sources)
        except Missing as missing:
            entry["skipped"] = str(missing)
            say(f"WARNING: {recipe.name} is skipped: {missing}")
            continue
        say(f"{recipe.name}: {len(case.data) / 1e6:.1f} MB, {options.rounds} rounds")
        outcome = run_case(case, options.deltaloom, options.rounds, say)
        report["machine"]["isa"] = outcome.isa or report["machine"]["isa"]
        entry |= {"dtype": case.dtype, "delta": case.base is not None, "changed": case.changed}
        entry |= {"absent": outcome.absent, "rows": outcome.rows}
    report["tools"].insert(0, {"name": DELTALOOM, "package": None, "version": own_version(options.deltaloom)})
    return report


def own_version(binary: Path) -> str | None:
    import subprocess

    try:
        return subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    except (OSError, subprocess.CalledProcessError):
        return None


def main() -> None:
    options = arguments()
    stored = options.out / "peers.json"
    if options.report_only:
        report = json.loads(stored.read_text())
    else:
        with_environment(options)
        report = measure(options)
    from picture import picture
    from report import judged, page

    report["goals"] = judged(report, json.loads(options.goals.read_text()))
    options.out.mkdir(parents=True, exist_ok=True)
    stored.write_text(json.dumps(report, indent=2) + "\n")
    (options.out / "peers.md").write_text(page(report))
    (options.out / "peers.svg").write_text(picture(report))
    say(f"wrote peers.json, peers.md and peers.svg in {os.path.relpath(options.out)}")


if __name__ == "__main__":
    main()
