#!/usr/bin/env python3
"""Opens pages and pictures in headless Chromium and looks for what is wrong with them.

For each HTML or SVG file, in light and in dark: messages of the console, requests to anything outside the file, texts in
a picture that overlap, texts that leave their picture, and texts with too little contrast to what is behind them; for
HTML also whether the page is wider than a narrow window. Exits with 1 if anything was found. With --screenshots DIR,
saves a picture of each file in both schemes. Needs Chromium and the package websockets; `just check-page` sets it up.
"""

import argparse
import asyncio
import base64
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import websockets

# Texts of one picture whose boxes share more than a pixel in both directions, and texts outside their picture.
LOOK = r"""
(() => {
  const found = [];
  for (const svg of document.querySelectorAll('svg')) {
    const name = svg.getAttribute('aria-label') || 'picture';
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].map(t => ({ text: t.textContent, box: t.getBoundingClientRect() }));
    for (const { text, box } of texts) {
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        found.push(`${name}: "${text}" is outside the picture`);
    }
    for (let i = 0; i < texts.length; i++) for (let j = i + 1; j < texts.length; j++) {
      const a = texts[i].box, b = texts[j].box;
      const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      // The boxes of lines of text are higher than the letters: a third of a line may be shared.
      if (w > 1 && h > Math.min(a.height, b.height) / 3)
        found.push(`${name}: "${texts[i].text}" overlaps "${texts[j].text}"`);
    }
    const behind = getComputedStyle(document.body || svg).backgroundColor;
    const backdrop = svg.querySelector('.bg') ? getComputedStyle(svg.querySelector('.bg')).fill : behind;
    const light = c => {
      const [r, g, b] = c.match(/[\d.]+/g).map(Number).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const inks = new Set([...svg.querySelectorAll('text')].map(t => getComputedStyle(t).fill));
    for (const ink of inks) {
      const [low, high] = [light(ink), light(backdrop)].sort((a, b) => a - b);
      const contrast = (high + 0.05) / (low + 0.05);
      if (contrast < 4.5) found.push(`${name}: text in ${ink} on ${backdrop} has a contrast of ${contrast.toFixed(1)}`);
    }
  }
  return {
    found, pictures: document.querySelectorAll('svg').length, texts: document.querySelectorAll('svg text').length,
    width: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight,
  };
})()
"""


class Browser:
    """A page in Chromium, spoken to over its debugging protocol."""

    def __init__(self, socket):
        self.socket, self.next_id, self.events = socket, 0, []

    async def call(self, method, tab=None, **params):
        self.next_id += 1
        message = {"id": self.next_id, "method": method, "params": params}
        if tab:
            message["sessionId"] = tab
        await self.socket.send(json.dumps(message))
        wanted = self.next_id
        while True:
            answer = json.loads(await self.socket.recv())
            if answer.get("id") == wanted:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    async def wait_for(self, method):
        while not any(event.get("method") == method for event in self.events):
            self.events.append(json.loads(await self.socket.recv()))


def complaints(events, url):
    """What the page said on the console, and what it asked the network for."""
    for event in events:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            yield f"exception: {params['exceptionDetails'].get('text')}"
        elif method == "Runtime.consoleAPICalled":
            yield f"console: {[a.get('value') for a in params['args']]}"
        elif method == "Log.entryAdded":
            yield f"log: {params['entry']['text']}"
        elif method == "Network.requestWillBeSent":
            asked = params["request"]["url"]
            if asked != url and not asked.startswith("data:"):
                yield f"request: {asked}"


async def check(browser, path, scheme, screenshots):
    target = (await browser.call("Target.createTarget", url="about:blank"))["targetId"]
    tab = (await browser.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
        await browser.call(f"{domain}.enable", tab)
    scheme_feature = [{"name": "prefers-color-scheme", "value": scheme}]
    await browser.call("Emulation.setEmulatedMedia", tab, features=scheme_feature)
    size = {"width": 1000, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    await browser.call("Emulation.setDeviceMetricsOverride", tab, **size)
    url = path.resolve().as_uri()
    browser.events.clear()
    await browser.call("Page.navigate", tab, url=url)
    await browser.wait_for("Page.loadEventFired")
    look = {"expression": LOOK, "returnByValue": True}
    seen = (await browser.call("Runtime.evaluate", tab, **look))["result"]["value"]
    found = list(complaints(browser.events, url)) + seen["found"]
    if screenshots:
        clip = {"x": 0, "y": 0, "width": 1000, "height": min(seen["height"], 12000), "scale": 1}
        shot = await browser.call("Page.captureScreenshot", tab, clip=clip, captureBeyondViewport=True)
        name = "-".join(path.with_suffix("").parts[-2:]) if path.suffix == ".svg" else path.stem
        (screenshots / f"{name}-{scheme}.png").write_bytes(base64.b64decode(shot["data"]))
    if path.suffix == ".html":
        await browser.call("Emulation.setDeviceMetricsOverride", tab, **(size | {"width": 360}))
        narrow = (await browser.call("Runtime.evaluate", tab, **look))["result"]["value"]
        if narrow["width"] > 361:
            found.append(f"the page is {narrow['width']} pixels wide in a window of 360")
    await browser.call("Target.closeTarget", targetId=target)
    return found, seen


async def run(files, screenshots):
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        sys.exit("check_page: no Chromium here; on Debian: apt-get install chromium")
    failed = False
    # The browser's children may still write into the profile when it is removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0",
                   f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            address = next(line.split()[-1] for line in process.stderr if "DevTools listening on" in line)
            async with websockets.connect(address, max_size=None, proxy=None) as socket:
                browser = Browser(socket)
                for path in files:
                    for scheme in ("light", "dark"):
                        found, seen = await check(browser, path, scheme, screenshots)
                        failed |= bool(found)
                        verdict = f"{len(found)} faults" if found else "good"
                        print(f"{path} ({scheme}): {seen['pictures']} pictures, {seen['texts']} texts: {verdict}")
                        for fault in found[:20]:
                            print(f"  {fault}")
        finally:
            process.terminate()
            process.wait()
            process.stderr.close()
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="HTML and SVG files, or folders of them")
    parser.add_argument("--screenshots", type=Path, help="folder for a picture of each file")
    options = parser.parse_args()
    files = []
    for path in options.files:
        files += sorted(p for p in path.rglob("*") if p.suffix in (".html", ".svg")) if path.is_dir() else [path]
    if options.screenshots:
        options.screenshots.mkdir(parents=True, exist_ok=True)
    sys.exit(asyncio.run(run(files, options.screenshots)))


if __name__ == "__main__":
    main()
