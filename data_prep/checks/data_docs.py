"""great_expectations' Data Docs as plain pages that need no network.

Its own pages load styles and scripts from six hosts, their index is drawn by a script, and they print the values of
failing rows, which strangers wrote. Ours keep the text and the tables, carry their own style, and a content policy
under which nothing is loaded and nothing runs.
"""

from __future__ import annotations

import re
import shutil
from html import escape
from pathlib import Path

TITLES = {"source": "The source table", "latent-cache": "The finished latent cache"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# script and style with what is in them, and single tags that fetch something
REMOVED = re.compile(
    r"<(script|style|footer|form)\b.*?</\1\s*>|<(link|img|meta|base|iframe)\b[^>]*>"
    r"|<nav class=\"navbar.*?</nav>\s*</div>\s*</nav>",
    re.DOTALL | re.IGNORECASE,
)
STYLE = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")


def adopt(site: Path, title: str, docs: Path) -> None:
    """Moves the results and the suite of the site that great_expectations wrote into `docs`, and removes the rest."""
    (results,) = site.glob("validations/**/*.html")
    (suite,) = site.glob("expectations/**/*.html")
    for page, name in ((results, f"{title}.html"), (suite, f"{title}-expectations.html")):
        text = plain(page.read_text(encoding="utf-8"), title)
        (docs / name).write_text(text, encoding="utf-8")
    shutil.rmtree(site)


def plain(page: str, title: str) -> str:
    """The page without anything that is fetched or run."""
    text = REMOVED.sub("", page)
    text = re.sub(r'href="(\.\./)*expectations/[^"]*"', f'href="{title}-expectations.html"', text)
    text = re.sub(r'href="(\.\./)*validations/[^"]*"', f'href="{title}.html"', text)
    text = re.sub(r'href="(\.\./)*index\.html"', 'href="index.html"', text)
    text = re.sub(r"<title>.*?</title>", "", text, flags=re.DOTALL)
    head = _head(TITLES[title])
    text = re.sub(r"<head\b[^>]*>", lambda found: found.group() + head, text, count=1)
    return re.sub(r"<body\b[^>]*>", lambda found: found.group() + '<a href="index.html">Checks</a>', text, count=1)


def write_index(docs: Path) -> None:
    """`index.html` over the pages that `adopt` left."""
    rows = "".join(
        f'<li><a href="{name}.html">{escape(text)}: results</a> · '
        f'<a href="{name}-expectations.html">what is expected</a></li>'
        for name, text in TITLES.items()
        if (docs / f"{name}.html").is_file()
    )
    page = (
        f"<!doctype html><html lang=en><head>{_head('Checks')}</head><body><h4>Checks</h4><ul>{rows}</ul></body></html>"
    )
    (docs / "index.html").write_text(page, encoding="utf-8")


def _head(title: str) -> str:
    return (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style>"
    )
