"""The glossary has each word once, with one sentence."""

import re
from pathlib import Path

ROWS = re.findall(
    r"^\| ([^|]+) \| ([^|]+) \|$",
    (Path(__file__).parents[2] / "docs" / "glossary.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)
WORDS = [word for word, _ in ROWS if word not in ("Word", "---")]


def test_the_glossary_has_each_word_once() -> None:
    assert len(WORDS) > 50
    assert sorted(set(WORDS)) == sorted(WORDS)


def test_each_word_of_the_glossary_has_one_sentence() -> None:
    rows = [(word, text) for word, text in ROWS if word in WORDS]
    assert [word for word, text in rows if not text.endswith(".") or len(text) > 240] == []


def test_a_reader_of_the_architecture_finds_the_glossary() -> None:
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert "(glossary.md)" in page
