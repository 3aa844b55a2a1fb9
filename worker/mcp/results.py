"""What an MCP server's tool answered, as text: a step's result is text, and so is what a model is shown.

Texts are kept, those of resources too, and structured content where no text says the same. What is no text (an image,
sound, bytes) is named with its kind and size, and left out: nobody has asked for a file of that name in the workspace.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from backplane.domain.sizes import shortened

KIND_CHARS = 32
LINE_CHARS = 500
"""Of an address, a name or a description."""


def text_of(answer: Mapping[str, Any]) -> str | None:
    """Of the result of tools/call; None when it is none."""
    content = answer.get("content")
    structured = answer.get("structuredContent")
    if structured is None:
        # As servers of 2024 wrote it.
        structured = answer.get("toolResult")
    if content is None and structured is not None:
        content = []
    if not isinstance(content, Sequence) or isinstance(content, str):
        return None
    parts = [_part(part) for part in content]
    if structured is not None and not _is_repeated(structured, content, parts):
        parts.append(json.dumps(structured, ensure_ascii=False))
    return "\n".join(parts)


def _part(part: Any) -> str:
    if not isinstance(part, Mapping):
        return "[a part of the kind unknown is left out]"
    match part.get("type"):
        case "text" if isinstance(part.get("text"), str):
            return str(part["text"])
        case "image" | "audio" as kind:
            what = "an image" if kind == "image" else "sound"
            return f"[{what} is left out: {_type_and_size(part, part.get('data'))}]"
        case "resource" if isinstance(part.get("resource"), Mapping):
            return _resource(part["resource"])
        case "resource_link":
            words = [_line(part.get(name)) for name in ("title", "name", "description", "mimeType")]
            return f"[a link to {_line(part.get('uri'))}: {', '.join(dict.fromkeys(filter(None, words)))}]"
        case kind:
            return f"[a part of the kind {_line(kind)[:KIND_CHARS] or 'unknown'} is left out]"


def _resource(resource: Mapping[str, Any]) -> str:
    uri, text = _line(resource.get("uri")), resource.get("text")
    if not isinstance(text, str):
        text = _decoded(resource)
    if text is None:
        return f"[the resource {uri} is left out: {_type_and_size(resource, resource.get('blob'))}]"
    return f"[the resource {uri}]\n{text}"


def _decoded(resource: Mapping[str, Any]) -> str | None:
    """The text of a blob that is called one."""
    kind = _line(resource.get("mimeType")).partition(";")[0].strip().lower()
    if not (kind.startswith("text/") or kind.endswith(("json", "xml", "yaml"))):
        return None
    try:
        return base64.b64decode(str(resource.get("blob") or ""), validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def _type_and_size(part: Mapping[str, Any], data: Any) -> str:
    size = len(data.rstrip("=")) * 3 // 4 if isinstance(data, str) else 0
    return f"{_line(part.get('mimeType')) or 'of no type'}, {size:,} bytes"


def _line(value: Any) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else ""
    return shortened("".join(letter for letter in text if letter.isprintable()), LINE_CHARS)


def _is_repeated(structured: Any, content: Sequence[Any], parts: Sequence[str]) -> bool:
    """Whether the texts say the same: as JSON, or as what is under the one key `result`, where libraries put what a
    function returned: alone, or each item of a list as a text of its own."""
    value = structured
    if isinstance(structured, Mapping) and list(structured) == ["result"]:
        value = structured["result"]
    texts = [text for part, text in zip(content, parts, strict=True) if _is_text(part)]
    if any(_same(text, structured) or _same(text, value) for text in texts):
        return True
    return isinstance(value, list) and len(value) == len(texts) and all(map(_same, texts, value))


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text"


def _same(text: str, value: Any) -> bool:
    if isinstance(value, str) and text == value:
        return True
    try:
        return bool(json.loads(text) == value)
    except (ValueError, RecursionError):
        return False
