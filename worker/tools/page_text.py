"""What a reader sees of an HTML page: its text, a line for each block, links with where they lead.

For models, which read text better than tags, and pay for each. It is no browser: scripts do not run, styles hide
nothing. Pages are hostile, and the standard library's parser takes minutes for 100 KB of open tags; this one looks at
each character a bounded number of times and takes what it cannot read for text.
"""

import html
import re

MAX_PAGE_BYTES = 1024**2
"""The most bytes of a page that are read."""

_TAG_CHARS = 8192
_NO_CHARACTER = re.compile(r"&#[0-9]{100,};?")
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9:-]{0,62})(?![a-zA-Z0-9:-])")
_HREF = re.compile(r"""\shref\s{0,10}=\s{0,10}(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)
_ENDS_OF_SKIPPED = {
    tag: re.compile(f"</{tag}", re.IGNORECASE) for tag in ("script", "style", "template", "noscript", "svg")
}
_BLOCKS = frozenset(
    (
        *("address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figure", "footer", "form"),
        *("h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "main", "nav", "ol", "option", "p", "pre", "section"),
        *("table", "title", "tr", "ul"),
    )
)
_STANDS_FOR = {"li": "\n- ", "td": " | ", "th": " | "}


def text_of_page(page: str) -> str:
    parts: list[str] = []
    link, at = "", 0
    while (start := page.find("<", at)) >= 0:
        parts.append(_unescaped(page[at:start]))
        if page.startswith("<!--", start):
            at = _after(page.find("-->", start + 4), 3, page)
            continue
        tag = _TAG.match(page, start)
        end = page.find(">", start, start + _TAG_CHARS)
        if tag is None and page.startswith(("<!", "<?"), start) and end >= 0:
            at = end + 1
            continue
        if tag is None or end < 0:
            parts.append("<")
            at = start + 1
            continue
        closes, name, at = bool(tag[1]), tag[2].lower(), end + 1
        if name in _ENDS_OF_SKIPPED:
            if not closes and (found := _ENDS_OF_SKIPPED[name].search(page, at)) is None:
                at = len(page)
            elif not closes and found is not None:
                at = found.start()
        elif name == "a":
            if closes and link:
                parts.append(f" ({link})")
            link = "" if closes else _link(page[start:end])
        elif name in _BLOCKS:
            parts.append("\n")
        elif name in _STANDS_FOR:
            parts.append("\n" if closes and name == "li" else "" if closes else _STANDS_FOR[name])
    parts.append(_unescaped(page[at:]))
    lines = (" ".join(line.split()) for line in "".join(parts).split("\n"))
    return "\n".join(line for line in lines if line and line != "-") + "\n"


def _unescaped(text: str) -> str:
    """Python turns no text of more than 4,300 digits into a number, and no character has a number of 100."""
    return html.unescape(_NO_CHARACTER.sub("\ufffd", text) if "&#" in text else text)


def _after(found: int, length: int, page: str) -> int:
    return len(page) if found < 0 else found + length


def _link(tag: str) -> str:
    match = _HREF.search(tag)
    target = _unescaped(match[1] or match[2] or match[3] or "").strip() if match else ""
    return "" if target.startswith(("#", "javascript:", "data:")) else target
