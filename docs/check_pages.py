"""Look at built pages in a headless Chromium: alt texts, contrast, horizontal scroll at 390 px.

    python docs/check_pages.py site/index.html runs/vae-digits-001/report.html

Each page is opened in light and in dark, 390 px wide. A fault is a line; the exit status is 1 where
there are any, 2 without a Chromium ($CHROMIUM names one).
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
LOOK = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<iframe id="f" width="390" height="800" style="border:0" src="%s"></iframe><pre id="out"></pre>
<script>
const frame = document.getElementById("f");
frame.onload = () => setTimeout(() => {
  const page = frame.contentDocument, view = frame.contentWindow, faults = [];
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = c => c.slice(0, 3).map(v => v / 255).map(
    v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
  ).reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
  const over = (top, below) => top.slice(0, 3).map(
    (v, i) => v * top[3] / 255 + below[i] * (1 - top[3] / 255));
  const dark = view.matchMedia("(prefers-color-scheme: dark)").matches;
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement)
      layers.push(rgba(view.getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((c, l) => over(l, c), dark ? [18, 18, 18] : [255, 255, 255]);
  };
  for (const image of page.images)
    if (!(image.getAttribute("alt") || "").trim())
      faults.push("no alt text: " + (image.getAttribute("src") || "").slice(0, 60));
  const wide = page.documentElement.scrollWidth;
  if (wide > 391) faults.push("scrolls sideways: " + wide + " px");
  const seen = new Set();
  for (const element of page.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some(n => n.nodeType == 3 && n.textContent.trim());
    const style = view.getComputedStyle(element);
    if (!own || !element.getClientRects().length || style.visibility == "hidden"
        || style.opacity < 0.1 || element.closest("[aria-hidden=true]")) continue;
    const below = ground(element), ink = over(rgba(style.color), below);
    const [a, b] = [light(ink), light(below)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const large = parseFloat(style.fontSize) >= 24
      || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if (ratio >= (large ? 3 : 4.5)) continue;
    const what = "contrast " + ratio.toFixed(2) + ": <" + element.tagName.toLowerCase() + " class="
      + element.className + "> " + element.textContent.trim().slice(0, 30);
    const kind = element.tagName + element.className;
    if (!seen.has(kind)) { seen.add(kind); faults.push(what); }
  }
  document.getElementById("out").textContent = JSON.stringify(faults);
}, 500);
</script>"""


def chromium() -> str | None:
    """The path of a Chromium, or None."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def faults(page: Path, dark: bool, browser: str) -> list[str]:
    """The faults of a page in light or in dark, 390 px wide.

    Raises:
        RuntimeError: the browser did not look at it.
    """
    with tempfile.TemporaryDirectory() as folder:
        look = Path(folder) / "look.html"
        look.write_text(LOOK % page.resolve().as_uri(), encoding="utf-8")
        scheme = "--blink-settings=preferredColorScheme=" + ("0" if dark else "1")
        command = [
            browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-web-security",
            "--allow-file-access-from-files", f"--user-data-dir={folder}/profile", scheme,
            "--virtual-time-budget=8000", "--dump-dom", look.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="out">(\[.*?\])</pre>', done.stdout, re.S)
    if not found:
        raise RuntimeError(f"{page}: {browser} did not look at it: {done.stderr[-300:]}")
    return json.loads(html.unescape(found[1]))


def main(pages: list[str]) -> int:
    """Print the faults of some pages."""
    browser = chromium()
    if browser is None:
        print("expected a Chromium; name one by $CHROMIUM.", file=sys.stderr)
        return 2
    every = [
        f"{page} ({'dark' if dark else 'light'}): {fault}"
        for page in pages for dark in (False, True) for fault in faults(Path(page), dark, browser)
    ]  # fmt: skip
    print("\n".join(every) or f"{len(pages)} pages, light and dark: no faults")
    return int(bool(every))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
