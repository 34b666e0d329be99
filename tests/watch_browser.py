"""Opens the live page of a run in a headless Chromium and tells what it saw, as JSON lines on stdout.

    watch_browser.py BROWSER SCREENSHOTS NAME URL WORDS

The page is opened as a phone and as a desk would, light and dark. Then it stays open until its note about the connection has
these words in it; then all is looked at once more, and, if there is a report.html in the folder on standard input, at that.
"""

import base64
import json
import shutil
import sys
import tempfile
from pathlib import Path

from report_browser import LOOK, SCREENS, Browser

FIGURES = """
({
  tiles: [...document.querySelectorAll('.tiles dl > div')].map(e => e.textContent),
  charts: [...document.querySelectorAll('#charts .chart svg')].map(e => e.outerHTML),
  bars: [...document.querySelectorAll('.runbar i')].map(e => e.getAttribute('style')),
  note: document.getElementById('connection')?.textContent, status: document.querySelector('.status')?.textContent.trim(),
})
"""


def evaluate(browser, expression):
    result = browser.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
    if "exceptionDetails" in result:
        raise SystemExit(json.dumps(result["exceptionDetails"]))
    return result["result"]["value"]


def look(browser, screen, scheme, picture):
    width, height = SCREENS[screen]
    browser.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=screen == "phone")
    browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    seen = evaluate(browser, LOOK) | evaluate(browser, FIGURES)
    told = [m for m in browser.seen if m.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")]
    requests = [m["params"]["request"]["url"] for m in browser.seen if m.get("method") == "Network.requestWillBeSent"]
    seen.update(screen=screen, scheme=scheme, console=[json.dumps(m["params"]) for m in told], requests=requests)
    clip = {"x": 0, "y": 0, "width": width, "height": min(seen["height"], 12000), "scale": 1}
    shot = browser.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
    Path(picture).write_bytes(base64.b64decode(shot["data"]))
    print(json.dumps(seen), flush=True)


def until(browser, condition):
    # Resolves when it holds, checked by the page itself, so that nothing is asked in vain.
    evaluate(browser, f"new Promise(done => {{ const again = () => {condition} ? done(true) : setTimeout(again, 100); again(); }})")


def main():
    program, pictures, name, url, words = sys.argv[1:]
    pictures = Path(pictures)
    pictures.mkdir(parents=True, exist_ok=True)
    profile = tempfile.mkdtemp(prefix="watch-browser-")
    browser = Browser(program, profile)
    note = "document.getElementById('connection').textContent.includes"
    try:
        for domain in ("Page", "Runtime", "Log", "Network"):
            browser.ask(f"{domain}.enable")
        for screen in SCREENS:
            for scheme in ("light", "dark"):
                browser.seen.clear()
                browser.ask("Page.navigate", url=url)
                browser.until("Page.loadEventFired")
                until(browser, f"{note}('Live')")
                look(browser, screen, scheme, pictures / f"{name}-{screen}-{scheme}.png")
        print(json.dumps({"held": True}), flush=True)
        browser.seen.clear()
        until(browser, f"{note}({json.dumps(words)})")
        for screen in SCREENS:
            look(browser, screen, "light", pictures / f"{name}-over-{screen}.png")
        report = sys.stdin.readline().strip()
        if report:
            browser.seen.clear()
            browser.ask("Page.navigate", url=Path(report).resolve().as_uri())
            browser.until("Page.loadEventFired")
            look(browser, "desk", "light", pictures / f"{name}-report.png")
    finally:
        browser.close()
        shutil.rmtree(profile, ignore_errors=True)


if __name__ == "__main__":
    main()
