"""Opens pages in a headless Chromium and tells what it saw, as JSON on stdout.

    report_browser.py BROWSER SCREENSHOTS PAGE...

Each page is opened as a phone and as a desk would, light and dark. It is driven over the browser's own debugging pipe (file
descriptors 3 and 4), so that nothing but Python and a browser is needed.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SCREENS = {"phone": (375, 812), "desk": (1280, 900)}

# What a reader would see: whether anything sticks out, and whether the charts have a shape.
LOOK = """
(() => {
  const root = document.documentElement;
  const wide = [...document.querySelectorAll('body *')].filter(e => {
    if (e.closest('.scroll, pre, svg') || e.closest('details:not([open])') && !e.closest('summary')) return false;
    return e.getBoundingClientRect().right > root.clientWidth + 1;
  }).map(e => e.tagName + '.' + e.getAttribute('class'));
  const charts = [...document.querySelectorAll('.chart svg')];
  const shown = charts.filter(c => c.checkVisibility());
  const sizes = shown.map(c => c.getBoundingClientRect());
  const empty = shown.filter(c => {
    const shapes = [...c.querySelectorAll('.line, .dot')];
    return shapes.length === 0 || shapes.every(s => { const b = s.getBBox(); return b.width <= 0 && b.height <= 0; });
  }).length;
  const luminance = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$|transparent/.test(c)) return c; } return 'rgb(255,255,255)'; };
  const pale = [...document.querySelectorAll('h1, h2, p, li, dt, dd, td, th, a, small, summary, .status, .badge, figcaption')].filter(e => e.checkVisibility() && e.textContent.trim()).filter(e => {
    const [a, b] = [luminance(getComputedStyle(e).color), luminance(behind(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
  }).map(e => e.tagName + ': ' + e.textContent.trim().slice(0, 40));
  return {
    title: document.title, width: root.clientWidth, scroll_width: root.scrollWidth, height: root.scrollHeight, wide, pale,
    charts: charts.length, shown: shown.length, empty, small: sizes.filter(s => s.width < 100 || s.height < 40).length,
    background: getComputedStyle(document.body).backgroundColor, scripts: document.scripts.length,
  };
})()
"""


class Browser:
    """A browser and one page in it."""

    def __init__(self, program, profile):
        theirs_in, to = os.pipe()
        back, theirs_out = os.pipe()

        def place():
            # Out of the way first: one of them may be 3 or 4 already.
            high_in, high_out = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(high_in, 3)
            os.dup2(high_out, 4)

        flags = [
            "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-sandbox", "--no-first-run",
            "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--disable-quic", "--hide-scrollbars", "about:blank",
        ]
        self.process = subprocess.Popen(
            [program, *flags], preexec_fn=place, close_fds=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.to, self.back = to, os.fdopen(back, "rb", buffering=0)
        self.rest, self.last, self.seen = b"", 0, []
        target = next(t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]

    session = None

    def read(self):
        while b"\0" not in self.rest:
            more = self.back.read(1 << 20)
            if not more:
                raise SystemExit("the browser ended")
            self.rest += more
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def ask(self, method, **params):
        self.last += 1
        message = {"id": self.last, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.to, data):]
        while True:
            answer = self.read()
            if answer.get("id") == self.last:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']}")
                return answer["result"]
            self.seen.append(answer)

    def until(self, method):
        while True:
            for index, message in enumerate(self.seen):
                if message.get("method") == method:
                    return self.seen.pop(index)
            self.seen.append(self.read())

    def close(self):
        self.session = None
        try:
            self.ask("Browser.close")
        except (SystemExit, OSError):
            self.process.kill()
        self.process.wait()


def look(browser, page, screen, scheme, picture):
    width, height = SCREENS[screen]
    browser.seen.clear()
    browser.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=screen == "phone")
    browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.ask("Page.navigate", url=Path(page).resolve().as_uri())
    browser.until("Page.loadEventFired")
    result = browser.ask("Runtime.evaluate", expression=LOOK, returnByValue=True)
    if "exceptionDetails" in result:
        raise SystemExit(json.dumps(result["exceptionDetails"]))
    seen = result["result"]["value"]
    told = [m for m in browser.seen if m.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")]
    requests = [m["params"]["request"]["url"] for m in browser.seen if m.get("method") == "Network.requestWillBeSent"]
    seen.update(page=str(page), screen=screen, scheme=scheme, console=[json.dumps(m["params"]) for m in told], requests=requests[1:])
    clip = {"x": 0, "y": 0, "width": width, "height": min(seen["height"], 12000), "scale": 1}
    shot = browser.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
    Path(picture).write_bytes(base64.b64decode(shot["data"]))
    return seen


def main():
    program, pictures, *pages = sys.argv[1:]
    Path(pictures).mkdir(parents=True, exist_ok=True)
    profile = tempfile.mkdtemp(prefix="report-browser-")
    browser = Browser(program, profile)
    try:
        for domain in ("Page", "Runtime", "Log", "Network"):
            browser.ask(f"{domain}.enable")
        for page in pages:
            for screen in SCREENS:
                for scheme in ("light", "dark"):
                    name = f"{Path(page).parent.name}-{screen}-{scheme}.png"
                    print(json.dumps(look(browser, page, screen, scheme, Path(pictures) / name)))
    finally:
        browser.close()
        shutil.rmtree(profile, ignore_errors=True)


if __name__ == "__main__":
    main()
