"""The steps of a runbook: the fenced blocks of a Markdown text, in their order.

    # Count words                     the heading above a block is its title
    ```data/words.txt                 a path in the info string: the block is written to that file
    ```python src/count.py            the same; the language is only for the reader
    ```sh                             sh, bash, shell: run by the shell tool
    ```python                         python, py: run by the Python tool

Blocks without an info string, and those marked text, output or console, are for the reader. Any other info string is an
error: a step that was meant to happen must not be passed over in silence.

Imports little, since a process of its own may read a long prompt (`worker.parsing`).
"""

import re
from typing import Any

from markdown_it import MarkdownIt

from backplane.errors import InvalidPlan

SHELL = frozenset({"sh", "bash", "shell"})
PYTHON = frozenset({"python", "py", "python3"})
PROSE = frozenset({"", "text", "txt", "output", "console"})
LANGUAGE = re.compile(r"^[A-Za-z0-9_+#-]+$")


def steps_of(prompt: str) -> list[dict[str, Any]]:
    """The steps of a runbook as a plan has them. Raises InvalidPlan."""
    steps: list[dict[str, Any]] = []
    title = ""
    # What stands within a line is not looked at: it is of no use here, and brackets in a row take minutes.
    tokens = MarkdownIt("commonmark").disable("inline").parse(prompt)
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            title = tokens[index + 1].content.strip()
        if token.type != "fence":
            continue
        line = token.map[0] + 1 if token.map else 0
        call = _tool_call(token.info.strip(), token.content, line)
        if call:
            tool, arguments = call
            step_title = title or f"block at line {line}"
            steps.append(
                {"id": f"step-{len(steps) + 1}", "tool": tool, "arguments": arguments, "title": step_title[:200]}
            )
    return steps


def _tool_call(info: str, content: str, line: int) -> tuple[str, dict[str, str]] | None:
    words = info.split()
    path = next((word for word in words if "/" in word or "." in word), None)
    if path:
        return "file_write", {"path": path, "content": content}
    language = words[0].lower() if words else ""
    if language in PROSE:
        return None
    if language in SHELL:
        return "shell", {"script": content}
    if language in PYTHON:
        return "python", {"code": content}
    raise InvalidPlan(
        f"the block at line {line} is marked {info!r}, which is no step: write sh, python, or a path such as "
        f"data/{language if LANGUAGE.match(language) else 'file'}.txt; mark it text when it is only to be read",
        field="prompt",
    )
