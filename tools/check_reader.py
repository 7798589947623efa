"""Runs loom_reader.py over every container of the manifests given: it must agree with the original byte for byte, say of a
container's bases and texts what the manifest says, and refuse the same container with one byte changed.

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

from loom_files import base_digest

READER = Path(__file__).with_name("loom_reader.py")


def run(*arguments):
    return subprocess.run([sys.executable, str(READER), *map(str, arguments)], capture_output=True, text=True)


def read(container, entry, folder):
    bases = [part for base in entry["bases"] for part in ("--base", folder / base)]
    return run(container, "--check", folder / entry["original"], *bases)


def identity_fault(container, entry, folder):
    """What is wrong with what a container says of itself, if the manifest knows that."""
    if "identity" not in entry:
        return None
    done = run(container, "--identity")
    if done.returncode != 0:
        return done.stderr.strip()
    bases = [{"name": name, "digest": base_digest(folder / base)}
             for name, base in zip(entry["identity"]["base_names"], entry["bases"], strict=True)]
    wanted = {"bases": bases, "texts": entry["identity"]["texts"]}
    found = json.loads(done.stdout)
    return None if found == wanted else f"it says {found} of itself, not {wanted}"


def check(job):
    """A line of the report, and whether all is well."""
    manifest, entry = job
    container = manifest.parent / entry["container"]
    start = time.monotonic()
    done = read(container, entry, manifest.parent)
    if done.returncode != 0:
        why = done.stderr.strip() or "the restored bytes differ from the original"
        return f"FAILED {container}: {why}", False
    if why := identity_fault(container, entry, manifest.parent):
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
