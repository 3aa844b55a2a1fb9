"""The steps of a runbook: the fenced blocks of a Markdown text, in their order.

    # Count words                     the heading above a block is its title
    ```data/words.txt                 a path: the block is written to that file
    ```python src/count.py            the same; the language is only for the reader
    ```sh                             sh, bash, shell, zsh: run by the shell tool
    ```python                         python, py, python3, python3.12: run by the Python tool
    ```sh title="set it up" {1,3}     attributes of renderers, and what follows a #, are for the reader

Blocks without an info string, and those marked text, output or console, are for the reader. Everything else is an error
with its line, also what looks like the beginning of a block and is none: a step that was meant to happen must not be
passed over in silence.

Imports little, since a process of its own may read a long prompt (`worker.parsing`).
"""

import re
from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from backplane.errors import InvalidPlan

SHELL = frozenset({"sh", "bash", "shell", "zsh"})
PYTHON = re.compile(r"python|py|python3(\.\d{1,2})?", re.IGNORECASE)
PROSE = frozenset({"", "text", "txt", "output", "console"})
LANGUAGE = re.compile(r"[A-Za-z0-9_+#-]+")
FLAGS = frozenset(
    {
        *("copy", "nocopy", "no-copy", "wrap", "nowrap", "no-wrap", "live", "linenos", "linenums", "linenumbers"),
        *("numberlines", "shownumbers", "showlinenumbers", "nolinenumbers", "line-numbers", "no-line-numbers"),
        *("collapse", "collapsible", "expandable", "noinline", "lines"),
    }
)
"""Words behind a language that renderers take, in small letters."""

_BRACES = re.compile(r"\{[^{}]*\}")
_ATTRIBUTE = re.compile(r"""[A-Za-z_][\w.-]*=("[^"]*"|'[^']*'|[^\s"']*)""")
_COLON = re.compile(r"([A-Za-z0-9_+#-]+):(?=[A-Za-z])")
_FILE_NAME = re.compile(r"\.[A-Za-z][A-Za-z0-9_-]{0,15}$|^\.[A-Za-z]")
_FENCE = re.compile(r"[\s>]*(?:(?:[-*+]|\d{1,9}[.)])\s+)*(`{3,}|~{3,})")
_ONLY_A_FENCE = re.compile(r"[\s>]*(`{3,}|~{3,})\s*$")
_NEITHER_PROSE_NOR_STEP = frozenset({"heading_open", "inline", "heading_close", "fence", "hr"})


class UnknownLanguage(InvalidPlan):
    """A block that is neither a step nor marked as something to read."""


def steps_of(prompt: str, *, only_if_nothing_else: bool = False) -> list[dict[str, Any]]:
    """The steps of a runbook as a plan has them; none when there is no block that is one. Raises InvalidPlan.

    `only_if_nothing_else`: none too when the text has more than headings and blocks that are steps or to be read, which
    may be words for a model."""
    prompt = prompt.removeprefix("\ufeff")
    # What stands within a line is not looked at: it is of no use here, and brackets in a row take minutes.
    tokens = MarkdownIt("commonmark").disable("inline").parse(prompt)
    if only_if_nothing_else and any(token.type not in _NEITHER_PROSE_NOR_STEP for token in tokens):
        return []
    try:
        steps = _steps(tokens)
    except UnknownLanguage:
        if only_if_nothing_else:
            return []
        raise
    _check_fences(re.split(r"\r\n|\r|\n", prompt), [token for token in tokens if token.type == "fence"], bool(steps))
    return steps


def _steps(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    title = ""
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
    language, rest = _language(info)
    is_prose, is_shell = language.lower() in PROSE, language.lower() in SHELL
    is_python = bool(PYTHON.fullmatch(language))
    if not language or is_prose or is_shell or is_python or LANGUAGE.fullmatch(language):
        path = _path_behind(rest)
    else:
        path = _without_attributes(info)
    if path:
        return "file_write", {"path": path, "content": content}
    if is_prose and not (language == "" and rest):
        return None
    if not (is_shell or is_python):
        example = language if LANGUAGE.fullmatch(language) else "file"
        raise UnknownLanguage(
            f"the block at line {line} is marked {info!r}, which is no step: write sh, python, or a path such as "
            f"data/{example}.txt; mark it text when it is only to be read",
            field="prompt",
        )
    unknown = [word for word in rest.split() if word.lower() not in FLAGS]
    if unknown:
        raise InvalidPlan(
            f"the block at line {line} is marked {info!r}; what is {unknown[0]!r} behind the language? Leave it out, "
            "put a # before it, or write a path with a folder or an ending (src/run.sh) to write the block to a file",
            field="prompt",
        )
    return ("shell", {"script": content}) if is_shell else ("python", {"code": content})


def _language(info: str) -> tuple[str, str]:
    """The language and what else is said, without attributes and comment. Pandoc writes `{.sh #id key=value}`, R
    `{python, echo=FALSE}`, others `js:title=x` and `js{1,4}`."""
    if info.startswith("{"):
        inner, _, behind = info[1:].partition("}")
        words = [word for word in re.split(r"[\s,]+", inner) if word]
        classes = [word[1:] for word in words if word.startswith(".")]
        language = classes[0] if classes else words[0] if words else ""
        return language, _without_attributes(behind)
    first = re.split(r"[\s{]", info, maxsplit=1)[0]
    name = first.partition("=")[0]
    if (colon := _COLON.match(first)) and "/" not in name and not _FILE_NAME.search(name):
        info = f"{colon[1]} {info[colon.end() :]}"
        first = colon[1]
    return first, _without_attributes(info[len(first) :])


def _without_attributes(text: str) -> str:
    """What is left is a path, or words; `"…"` around a whole path is taken off."""
    text = re.split(r"(?:^|\s)#", text, maxsplit=1)[0]
    text = _ATTRIBUTE.sub(" ", _BRACES.sub(" ", text)).strip()
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'" else text


def _path_behind(rest: str) -> str:
    """The path that stands behind a language: with a folder, or an ending that begins with a letter."""
    return rest if "/" in rest or _FILE_NAME.search(rest) else ""


def _check_fences(lines: Sequence[str], fences: Sequence[Token], has_steps: bool) -> None:
    """Raises InvalidPlan for a block that has no end, and for what looks like the beginning of one and is none."""
    inside = set[int]()
    for fence in fences:
        start, end = fence.map or (0, 0)
        inside.update(range(start, end))
        closing = _ONLY_A_FENCE.match(lines[end - 1]) if end - 1 > start else None
        if closing is None or not closing[1].startswith(fence.markup):
            raise InvalidPlan(
                f"the block that begins at line {start + 1} has no end: close it with {fence.markup} on a line of its "
                "own, or everything behind it belongs to it",
                field="prompt",
            )
    for number, line in enumerate(lines):
        if number in inside or not (found := _FENCE.match(line)) or (not has_steps and not fences):
            continue
        if "`" in found[1] and "`" in line[found.end() :]:
            continue  # code within a line
        raise InvalidPlan(
            f"line {number + 1} looks like the beginning of a block and is none: it is indented by four or more, or "
            "stands in HTML or a comment; take the indentation away, put an empty line before it (behind <details>, "
            "say), or leave the marks out",
            field="prompt",
        )
