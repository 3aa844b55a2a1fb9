"""What a run asks a person, and what was answered, in words.

An approval shows what is carried out: where the arguments were edited, the edited ones first. Texts of several lines
are shown as lines, each behind a bar and with its control characters escaped, so that none of them can be taken for a
line of ours. Nothing is cut: it is what a person answers for.
"""

import json
from typing import Any

from agentctl.api.api_error import JsonObject
from backplane.process.terminal_text import escaped


def asked_in_words(decision: JsonObject) -> str:
    """One line of what is asked and, once it is decided, of the answer. Texts of several lines are in
    `texts_in_lines`."""
    asked, answer = decision["asked"], decision.get("answer") or {}
    match decision["kind"]:
        case "approval":
            reason = f" ({asked['reason']})" if asked.get("reason") else ""
            words = f"use {asked.get('tool')} {_in_one_line(_arguments(decision))}{reason}"
            if answer.get("arguments") is not None:
                words += f", edited; asked was {_json(asked.get('arguments') or {})}"
        case "question":
            choices = f" [{', '.join(map(str, asked['choices']))}]" if asked.get("choices") else ""
            words = f"{asked.get('question')}{choices}"
        case "budget":
            words = str(asked.get("message") or f"{asked.get('account')} is used up")
        case kind:
            return str(kind)
    return f"{words}{_answered({**answer, 'arguments': None})}"


def answer_in_words(answer: JsonObject | None) -> str:
    """What stands behind `approved`, `rejected` or `answered`: the edited arguments, the reason, the words."""
    answer = answer or {}
    edited = answer.get("arguments")
    return (f" with {_in_one_line(edited)}" if edited is not None else "") + _answered(answer)


def _answered(answer: JsonObject) -> str:
    words = answer.get("text") or answer.get("reason")
    added = f"; added: {_json(answer['budget'])}" if answer.get("budget") else ""
    return f"{f': {_json(words)}' if words else ''}{added}"


def texts_in_lines(decision: JsonObject) -> list[str]:
    """The arguments that have several lines, each below its name; empty where there are none. Safe for a terminal."""
    if decision["kind"] != "approval":
        return []
    lines = []
    for name, text in _arguments(decision).items():
        if _has_lines(text):
            lines += [f"{escaped(name)}:", *(f"  │ {escaped(line)}" for line in text.removesuffix("\n").split("\n"))]
    return lines


def _arguments(decision: JsonObject) -> dict[str, Any]:
    """With which the step is carried out."""
    edited = (decision.get("answer") or {}).get("arguments")
    found = edited if edited is not None else (decision.get("asked") or {}).get("arguments")
    return found or {}


def _in_one_line(arguments: dict[str, Any]) -> str:
    short = {name: value for name, value in arguments.items() if not _has_lines(value)}
    long = [
        f"{name} of {value.removesuffix(chr(10)).count(chr(10)) + 1} lines"
        for name, value in arguments.items()
        if _has_lines(value)
    ]
    return " and ".join([*([_json(short)] if short or not long else []), *long])


def _has_lines(value: Any) -> bool:
    return isinstance(value, str) and "\n" in value.removesuffix("\n")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
