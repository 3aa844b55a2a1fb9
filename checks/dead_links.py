"""Finds links in the project's Markdown files that lead nowhere: files, folders and headings that do not exist.

Links to other machines are not followed: a check must say the same with and without a network.
"""

import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]


def documents(root: Path) -> list[Path]:
    """Every Markdown file of the project; what lies in a folder whose name starts with a dot, or that npm fills, is
    not the project's."""
    found = (path for path in root.rglob("*.md") if not any(map(_is_foreign, path.relative_to(root).parts)))
    return sorted(found)


def _is_foreign(folder: str) -> bool:
    return folder.startswith(".") or folder == "node_modules"


def dead_links(document: Path, root: Path) -> Iterator[str]:
    """One sentence a link of `document` that leads nowhere, or out of `root`."""
    for line, link in _links(document):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (document.parent / unquote(parts.path)).resolve() if parts.path else document
        where = f"{document.relative_to(root)}:{line}: {link}"
        if not target.is_relative_to(root):
            yield f"{where} leads out of the project"
        elif not target.exists():
            yield f"{where} does not exist"
        elif parts.fragment and target.suffix == ".md" and unquote(parts.fragment) not in anchors(target):
            yield f"{where} names no heading of that file"


def anchors(document: Path) -> set[str]:
    """The fragments under which a document's headings can be linked to, as GitHub makes them."""
    found: set[str] = set()
    tokens = _parse(document)
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            text = "".join(part.content for part in inline.children or [] if part.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            unique, count = slug, 0
            while unique in found:
                count += 1
                unique = f"{slug}-{count}"
            found.add(unique)
    return found | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", document.read_text(encoding="utf-8")))


def _links(document: Path) -> Iterator[tuple[int, str]]:
    for token in _parse(document):
        for part in token.children or []:
            if part.type in ("link_open", "image"):
                yield (token.map[0] + 1 if token.map else 1), str(part.attrGet("href") or part.attrGet("src") or "")


def _parse(document: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(document.read_text(encoding="utf-8"))


def main() -> int:
    found = [sentence for document in documents(ROOT) for sentence in dead_links(document, ROOT)]
    print("\n".join(found) or "No dead links.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
