"""The steps of a runbook: the fenced blocks of a Markdown text, in their order.

    # Count words                     the heading above a block is its title
    ```data/words.txt                 a path: the block is written to that file
    ```python src/count.py            the same; the language is only for the reader
    ```sh                             sh, bash, shell, zsh: run by the shell tool
    ```python                         python, py, python3, python3.12: run by the Python tool
    ```sh title="set it up" {1,3}     attributes of renderers, and what follows a #, are for the reader
    ```sh:setup.sh                    the same as title: a name behind a colon is for the reader
    ```sh,ignore  sh eval=false       refused: these say that the block is not to be run

Blocks without an info string, and those marked text, output or console, are for the reader. Everything else is an error
with its line, also what looks like the beginning of a block and is none: a step that was meant to happen must not be
passed over in silence.

Imports little, since a process of its own may read a long prompt (`backplane.input.parsing`).
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
        *("collapse", "collapsible", "expandable", "noinline", "lines", "editable", "runnable", "playground"),
    }
)
"""Words behind a language that renderers take, in small letters."""

NOT_TO_BE_RUN = frozenset(
    {
        *("ignore", "skip", "norun", "no_run", "no-run", "noeval", "no-eval", "noexec", "no-exec", "disabled"),
        *("dontrun", "donotrun", "do-not-run", "compile_fail", "should_panic"),
    }
)
"""Words of mdBook, rustdoc and others for a block that is only shown, in small letters."""

FILES_WITHOUT_ENDING = frozenset(
    {
        *(
            "Makefile",
            "GNUmakefile",
            "Dockerfile",
            "Containerfile",
            "Jenkinsfile",
            "Vagrantfile",
            "Procfile",
            "Gemfile",
        ),
        *("Rakefile", "Justfile", "Brewfile", "Pipfile", "Caddyfile", "LICENSE", "LICENCE", "COPYING", "NOTICE"),
        *("README", "CHANGELOG", "AUTHORS", "CONTRIBUTING", "CODEOWNERS", "VERSION"),
    }
)
"""Names of files at the root that are taken as paths without a folder or an ending. Others are written `./NAME`."""

_BRACES = re.compile(r"\{[^{}]*\}")
_ATTRIBUTE = re.compile(r"""[A-Za-z_][\w.-]*=("[^"]*"|'[^']*'|[^\s"']*)""")
_COLON = re.compile(r"([A-Za-z0-9_+#.-]+):(?=\S)")
_NO_NAME = re.compile(r"""["`<>|]|^[^/]*[:,;=*?&()\[\]{}']""")
"""What makes a word no path: marks anywhere, or punctuation before the first slash; `./a,b.txt` is one."""
_TRUE = r"(?:true|t|yes|1)(?![\w:])"
_SAYS_NOT_TO_RUN = re.compile(
    rf"""\beval["']?\s*[=:](?!\s*["']?{_TRUE})"""
    r"""|\b(?:cmd|run|exec|execute|enabled)["']?\s*[=:]\s*["']?(?:false|f|no|never|off|0)\b"""
    r"""|\bexcludeFromRunAll["']?\s*[=:]\s*["']?true\b"""
    r"|\b(?:do not|don['\u2019]?t|never|not to) (?:be )?(?:run|execute|executed)\b",
    re.IGNORECASE,
)
"""Attributes of R Markdown, Quarto, Runme and Markdown editors, and words."""
_CELL_OPTION = re.compile(r"\s*(?:#|//|--)\|")
_HINT = re.compile(
    r"""(?:^|[\s{,:])(?:(?:title|file|filename|name|path|source)\s*[=:]\s*|[A-Za-z0-9_+#-]+:)["']?([^\s"'{},:=]+)""",
    re.IGNORECASE,
)
_FILE_NAME = re.compile(r"\.[A-Za-z][A-Za-z0-9_-]{0,15}$|^\.[A-Za-z]")
_FENCE = re.compile(r"[\s>]*(?:(?:[-*+]|\d{1,9}[.)])\s+)*(`{3,}|~{3,})")
_ONLY_A_FENCE = re.compile(r"[\s>]*(`{3,}|~{3,})\s*$")
_NOT_TO_BE_RUN = re.compile(
    r"\b(do not|don['\u2019]?t|never|not to) (be )?(run|execute|executed|use|used|do)\b|\bexamples?\b", re.IGNORECASE
)
_NEITHER_PROSE_NOR_STEP = frozenset({"heading_open", "inline", "heading_close", "fence", "hr"})


@dataclass(frozen=True, slots=True)
class Block:
    """A block that is a step: the line of its fence, from 1, and the step as a plan has it."""

    line: int
    step: dict[str, Any]


class UnknownLanguage(InvalidPlan):
    """A block that is neither a step nor marked as something to read."""


def steps_of(prompt: str, *, only_if_nothing_else: bool = False) -> list[dict[str, Any]]:
    """The steps of a runbook as a plan has them; as `blocks_of`."""
    return [block.step for block in blocks_of(prompt, only_if_nothing_else=only_if_nothing_else)]


def blocks_of(prompt: str, *, only_if_nothing_else: bool = False) -> list[Block]:
    """The blocks of a runbook that are steps; none when there is no such block. Raises InvalidPlan with all that is
    wrong.

    `only_if_nothing_else`: none too when the text has more than headings and blocks that are steps or to be read, which
    may be words for a model, or a heading that says not to run what stands below it."""
    prompt = prompt.removeprefix("\ufeff")
    # What stands within a line is not looked at: it is of no use here, and brackets in a row take minutes.
    tokens = MarkdownIt("commonmark").disable("inline").parse(prompt)
    if only_if_nothing_else and not _is_nothing_else(tokens):
        return []
    blocks, faults = list[Block](), list[InvalidPlan]()
    title = ""
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            title = tokens[index + 1].content.strip()
        if token.type != "fence":
            continue
        line = token.map[0] + 1 if token.map else 0
        try:
            if call := _tool_call(token.info.strip(), token.content, line):
                blocks.append(Block(line, _step(len(blocks) + 1, call, title or f"block at line {line}")))
        except InvalidPlan as fault:
            faults.append(fault)
    if only_if_nothing_else and any(isinstance(fault, UnknownLanguage) for fault in faults):
        return []
    fences = [token for token in tokens if token.type == "fence"]
    faults += _faults_of_fences(re.split(r"\r\n|\r|\n", prompt), fences, bool(blocks or faults))
    if faults:
        found = [fault for error in faults for fault in error.faults]
        raise InvalidPlan.of(sorted(found, key=lambda fault: fault.line or 0))
    return blocks


def _is_nothing_else(tokens: Sequence[Token]) -> bool:
    return all(
        token.type in _NEITHER_PROSE_NOR_STEP and not (token.type == "inline" and _NOT_TO_BE_RUN.search(token.content))
        for token in tokens
    )


def _step(number: int, call: tuple[str, dict[str, str]], title: str) -> dict[str, Any]:
    tool, arguments = call
    return {"id": f"step-{number}", "tool": tool, "arguments": arguments, "title": title[:200]}


def _wrong(message: str, line: int) -> InvalidPlan:
    return InvalidPlan(message, field="prompt", line=line)


def _tool_call(info: str, content: str, line: int) -> tuple[str, dict[str, str]] | None:
    language, rest = _language(info)
    if language.lower() not in PROSE and (mark := _mark_not_to_run(info, content)):
        raise UnknownLanguage(
            f"the block at line {line} is marked {mark!r}, which says that it is not to be run, and a "
            "runbook's blocks are: mark it text when it is only to be read, or take that away",
            field="prompt",
            line=line,
        )
    is_prose, is_shell = language.lower() in PROSE, language.lower() in SHELL
    is_python = bool(PYTHON.fullmatch(language))
    if not language or is_prose or is_shell or is_python or LANGUAGE.fullmatch(language):
        path = language if language in FILES_WITHOUT_ENDING and not rest else _path_behind(rest)
    else:
        path = _path_alone(info)
    if path:
        return "file_write", {"path": path.removeprefix("./") or path, "content": content}
    if is_prose and not (language == "" and rest):
        return None
    if not (is_shell or is_python):
        hint = _HINT.search(info)
        example = language if LANGUAGE.fullmatch(language) else "file"
        path = f"./{hint[1].removeprefix('./')}" if hint else f"data/{example}.txt"
        raise UnknownLanguage(
            f"the block at line {line} is marked {info!r}, which is no step: write sh, python, or the path of a file "
            f"alone, such as {path} (./NAME for a file without an ending, as ./Makefile); mark it text when it is only "
            "to be read",
            field="prompt",
            line=line,
        )
    unknown = [word for word in re.split(r"[\s,]+", rest) if word and word.lower() not in FLAGS]
    if unknown:
        raise _wrong(
            f"the block at line {line} is marked {info!r}; what is {unknown[0]!r} behind the language? Leave it out, "
            "put a # before it, or write one path with a folder or an ending (src/run.sh, ./Makefile; in quotes where "
            "it has spaces) to write the block to a file",
            line,
        )
    return ("shell", {"script": content}) if is_shell else ("python", {"code": content})


def _language(info: str) -> tuple[str, str]:
    """The language and the other words, without attributes and comment. Pandoc writes `{.sh #id key=value}`, R
    `{python, echo=FALSE}`, others `js:title=x` and `js{1,4}`."""
    if info.startswith("{"):
        inner, _, behind = info[1:].partition("}")
        words = [word for word in re.split(r"[\s,]+", inner) if word]
        classes = [word[1:] for word in words if word.startswith(".")]
        language = classes[0] if classes else words[0] if words else ""
        return language, _without_attributes(behind)
    first = re.split(r"[\s{]", info, maxsplit=1)[0]
    behind = info[len(first) :]
    if colon := _COLON.match(first):
        # `js:title=x` has attributes there, `sh:no-wrap` flags, `sh:run.sh` what others write as a title.
        more = first[colon.end() :]
        is_name = "=" not in more and (_is_path(more) or not LANGUAGE.fullmatch(more))
        return colon[1], _without_attributes(behind if is_name else f"{more}{behind}")
    if (comma := first.partition(","))[1] and LANGUAGE.fullmatch(comma[0]):
        return comma[0], _without_attributes(f",{comma[2]}{behind}")  # of mdBook; the comma says that it is no path
    return first, _without_attributes(behind)


def _mark_not_to_run(info: str, content: str) -> str:
    """What says that the block is not to be run: a word or an attribute of its info string, or an option in a comment
    at its beginning (`#| eval: false`). Empty: nothing does."""
    inside = " ".join(re.findall(r"\{([^{}]*)\}?", info))
    words = [*re.split(r"[\s,:{}]+", info), *(word.removeprefix(".") for word in re.split(r"[\s,]+", inside))]
    if _SAYS_NOT_TO_RUN.search(info) or any(word.lower() in NOT_TO_BE_RUN for word in words):
        return info
    options = itertools.takewhile(_CELL_OPTION.match, content.split("\n"))
    return next((line[:100] for line in options if _SAYS_NOT_TO_RUN.search(line)), "")


def _without_attributes(text: str) -> str:
    """What is left is a path, in quotes or not, or words."""
    text = re.split(r"(?:^|\s)#", text, maxsplit=1)[0]
    return _ATTRIBUTE.sub(" ", _BRACES.sub(" ", text)).strip()


def _path_behind(rest: str) -> str:
    """The path that stands behind a language: one word, or in quotes; else it may be words about the block."""
    word = _unquoted(rest)
    return word if (word != rest or len(rest.split()) == 1) and _is_path(word) else ""


def _path_alone(info: str) -> str:
    """The path, where nothing else stands there; it may have spaces."""
    path = _unquoted(_without_attributes(info))
    return path if _is_path(path) else ""


def _is_path(text: str) -> bool:
    """With a folder, or an ending that begins with a letter, or of a well-known name."""
    is_named = "/" in text or _FILE_NAME.search(text) or text in FILES_WITHOUT_ENDING
    return bool(is_named) and not _NO_NAME.search(text)


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'" else text


def _faults_of_fences(lines: Sequence[str], fences: Sequence[Token], has_steps: bool) -> Iterator[InvalidPlan]:
    """Of a block that has no end, and of what looks like the beginning of one and is none."""
    inside = set[int]()
    for fence in fences:
        start, end = fence.map or (0, 0)
        inside.update(range(start, end))
        closing = _ONLY_A_FENCE.match(lines[end - 1]) if end - 1 > start else None
        if closing is None or not closing[1].startswith(fence.markup):
            yield _wrong(
                f"the block that begins at line {start + 1} has no end: close it with {fence.markup} on a line of its "
                "own, or everything behind it belongs to it",
                start + 1,
            )
    for number, line in enumerate(lines):
        if number in inside or not (found := _FENCE.match(line)) or (not has_steps and not fences):
            continue
        if "`" in found[1] and "`" in line[found.end() :]:
            continue  # code within a line
        yield _wrong(
            f"line {number + 1} looks like the beginning of a block and is none: it is indented by four or more, or "
            "stands in HTML or a comment; take the indentation away, put an empty line before it (behind <details>, "
            "say), or leave the marks out",
            number + 1,
        )


def has_fence(prompt: str) -> bool:
    """Whether there may be a block in it. Takes a microsecond, where reading it takes thousands."""
    return "```" in prompt or "~~~" in prompt


def note_on_planner(planner: str, prompt: str) -> str:
    """Where a model is set and the run names no planner: how to choose the other one; empty where there is none."""
    if planner == "runbook":
        return (
            "the prompt is nothing but a runbook, so its blocks are carried out as they stand; to give it to the "
            "model, name the planner model"
        )
    if planner == "model" and has_fence(prompt):
        return (
            "the prompt has more than the blocks of a runbook, so the model reads it; to have its blocks carried out "
            "as they stand, name the planner runbook"
        )
    return ""
