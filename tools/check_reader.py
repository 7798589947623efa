"""Runs loom_reader.py over every container of the manifests given: it must agree with the original byte for byte, and it
must refuse the same container with one byte changed.

A manifest is what `xtask` writes: a list of containers, each with its original and its bases, relative to the manifest.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

READER = Path(__file__).with_name("loom_reader.py")


def read(container, entry, folder):
    command = [sys.executable, str(READER), str(container), "--check", str(folder / entry["original"])]
    for base in entry["bases"]:
        command += ["--base", str(folder / base)]
    return subprocess.run(command, capture_output=True, text=True)


def check(job):
    """A line of the report, and whether all is well."""
    manifest, entry = job
    container = manifest.parent / entry["container"]
    start = time.monotonic()
    done = read(container, entry, manifest.parent)
    if done.returncode != 0:
        why = done.stderr.strip() or "the restored bytes differ from the original"
        return f"FAILED {container}: {why}", False
    seconds = time.monotonic() - start
    with tempfile.NamedTemporaryFile(suffix=".loom") as broken:
        data = bytearray(container.read_bytes())
        data[len(data) // 2] ^= 0x10
        broken.write(data)
        broken.flush()
        if read(Path(broken.name), entry, manifest.parent).returncode == 0:
            return f"FAILED {container}: a changed byte in the middle is not noticed", False
    return f"ok {container} ({entry['covers']}), {seconds:.1f} s", True


def main():
    jobs = [(Path(path), entry) for path in sys.argv[1:] for entry in json.loads(Path(path).read_text())["containers"]]
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for line, is_well in pool.map(check, jobs):
            print(line, flush=True)
            failed += not is_well
    print(f"{len(jobs) - failed} containers read alike, {failed} not")
    return 1 if failed or not jobs else 0


if __name__ == "__main__":
    sys.exit(main())
