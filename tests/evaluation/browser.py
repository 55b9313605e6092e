"""A real browser for the reports: Chromium without a window."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

PROBE = """
<script>
addEventListener("load", () => {
  const images = [...document.images].map(i => ({
    alt: i.alt, natural: i.naturalWidth, shown: i.getBoundingClientRect().width,
  }));
  const facts = {
    images, title: document.title, text: document.body.innerText,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    requests: performance.getEntriesByType("resource").map(e => e.name).filter(name => !name.startsWith("data:")),
    svgs: document.querySelectorAll("svg").length, scripts: document.scripts.length,
  };
  const place = document.createElement("pre");
  place.id = "facts";
  place.textContent = JSON.stringify(facts);
  document.body.append(place);
});
</script>
"""


def chromium() -> str:
    """Path of the browser.

    Raises:
        AssertionError: there is none; the message says how to get it.
    """
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    raise AssertionError("No Chromium here: run `apt-get install -y --no-install-recommends chromium`.")


def facts_of(page: Path, folder: Path, width: int = 1280) -> dict[str, Any]:
    """What the browser made of the page: `images` (alt, natural and shown width), `text`, `title`, `requests` it sent,
    `overflow` (pixels wider than the window), number of `svgs` and `scripts` (ours is one)."""
    probed = folder / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    command = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={width},1600",
        "--virtual-time-budget=5000", "--dump-dom", probed.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'<pre id="facts">(.*?)</pre>', done.stdout, re.S)
    assert found, f"the browser did not finish the page: {done.stderr[-2000:]}"
    facts: dict[str, Any] = json.loads(html.unescape(found[1]))
    return facts
