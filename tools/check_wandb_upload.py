"""Runs wandb_upload.py with a stand-in for wandb: what it is told must be what the history says, and what cannot be
uploaded must be said."""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TOOL = Path(__file__).with_name("wandb_upload.py")
STUB = '''
import json, os
class Run:
    def __init__(self, **about): self.told = [about]
    def log(self, metrics, step): self.told.append([step, metrics])
    def finish(self): open(os.environ["TOLD"], "w").write(json.dumps(self.told))
init = Run
'''
HISTORY = [
    {"event": "matrix", "name": "a.weight", "form": "quantised", "shape": [2, 3], "bytes": 12, "step": 0},
    {"event": "measurement", "name": "val.u16", "kl": 0.5, "top1": 0.75, "ppl": None, "step": 1},
    {"event": "student", "verdict": "feasible", "ratio": 4.0, "bytes": 12, "step": 2},
]
METRICS = [
    [0, {"matrix/bytes": 12}],
    [1, {"measurement/val.u16/kl": 0.5, "measurement/val.u16/top1": 0.75}],
    [2, {"student/ratio": 4.0, "student/bytes": 12}],
]


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "modules").mkdir()
        (folder / "modules/wandb.py").write_text(STUB)
        report = folder / "student/report"
        report.mkdir(parents=True)
        (report / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in HISTORY))
        (report / "summary.json").write_text(json.dumps({"experiment": "first", "weights": "abc"}))

        def run(path, modules):
            told = {"PYTHONPATH": str(modules), "TOLD": str(folder / "told.json"), "WANDB_MODE": "offline"}
            command = [sys.executable, str(TOOL), str(path), "--project", "mine"]
            return subprocess.run(command, env=os.environ | told, capture_output=True, text=True)

        for path in [folder / "student", report, report / "history.jsonl"]:
            ended = run(path, folder / "modules")
            assert ended.returncode == 0, ended.stderr
            about, *metrics = json.loads((folder / "told.json").read_text())
            assert metrics == METRICS, metrics
            config = about["config"]
            assert (about["project"], about["name"], config["weights"]) == ("mine", "first", "abc"), about
            assert (config["verdict"], config["texts"], config["matrices"]) == ("feasible", ["val.u16"], 1), config
        # A module that fails as if it were not installed.
        (folder / "none").mkdir()
        (folder / "none/wandb.py").write_text("raise ImportError")
        (folder / "bad.jsonl").write_text('{"event": "matrix"}\n')
        (folder / "empty.jsonl").write_text("\n")
        refused = [
            (report, "none", "pip install wandb"), (folder / "bad.jsonl", "modules", "bad.jsonl:1"),
            (folder / "empty.jsonl", "modules", "nothing"), (folder / "absent", "modules", "absent"),
        ]
        for path, modules, words in refused:
            ended = run(path, folder / modules)
            assert ended.returncode == 1 and words in ended.stderr, (path, ended.stderr)
            assert "Traceback" not in ended.stderr, ended.stderr
    print("wandb_upload.py: all as expected")


if __name__ == "__main__":
    main()
