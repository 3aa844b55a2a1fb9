"""The project's own checks see what they are there to see."""

from pathlib import Path

import pytest

from backplane.domain.event_data import DATA
from backplane.domain.events import EventType
from backplane.redis.declared_keys import Key
from checks.dead_links import anchors, dead_links
from checks.key_table import with_table
from checks.reference import codes_in, faults_of_codes, main, pages


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# Title\n\n## What `agentctl up` does!\n\n## Twice\n\n## Twice\n")
    return tmp_path


def test_links_to_files_folders_and_headings_are_alive(root: Path) -> None:
    document = root / "docs" / "a.md"
    document.write_text(
        "# Here\n\n[up](../README.md) [heading](../README.md#what-agentctl-up-does) [self](#here) [folder](../docs) "
        "[second](../README.md#twice-1) [web](https://example.org/none) [mail](mailto:a@example.org)"
    )
    assert list(dead_links(document, root)) == []


@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        ("../NONE.md", "does not exist"),
        ("../README.md#none", "names no heading"),
        ("#none", "names no heading"),
        ("../../outside.md", "leads out"),
    ],
)
def test_a_dead_link_is_named_with_its_line(root: Path, link: str, sentence: str) -> None:
    document = root / "docs" / "a.md"
    document.write_text(f"# Here\n\n[x]({link})\n")
    (found,) = dead_links(document, root)
    assert found.startswith(f"docs/a.md:3: {link}")
    assert sentence in found


def test_links_in_tables_and_images_are_seen_but_code_is_not(root: Path) -> None:
    document = root / "a.md"
    document.write_text("| a |\n| --- |\n| [x](none.md) |\n\n![y](none.png)\n\n`[z](code.md)`\n")
    assert [sentence.split()[1] for sentence in dead_links(document, root)] == ["none.md", "none.png"]


def test_headings_with_the_same_text_get_different_anchors(root: Path) -> None:
    assert anchors(root / "README.md") == {"title", "what-agentctl-up-does", "twice", "twice-1"}


def test_the_table_of_keys_replaces_what_stands_between_its_markers_only() -> None:
    key = Key("jobs:{run_id}", "hash", "1 day", "API", "worker", "the job | its run")
    written = with_table("before\n<!-- keys -->\nold\n<!-- /keys -->\nafter\n", [key])
    assert written.splitlines() == [
        "before",
        "<!-- keys -->",
        "| Key | Type | Lifetime | Written by | Read by | What for |",
        "| --- | --- | --- | --- | --- | --- |",
        "| `jobs:{run_id}` | hash | 1 day | API | worker | the job \\| its run |",
        "<!-- /keys -->",
        "after",
    ]


def test_a_document_without_the_markers_is_an_error_and_not_a_table_that_nobody_sees() -> None:
    with pytest.raises(ValueError, match="<!-- keys -->"):
        with_table("no markers", [])


@pytest.mark.slow
def test_the_reference_is_that_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0, capsys.readouterr().out


def test_the_reference_has_every_type_of_event_and_every_argument() -> None:
    made = pages()
    assert all(f"## `{type.value}`" in made["events.md"] for type in EventType)
    assert {type: set(fields) for type, fields in DATA.items() if "" not in fields} == {}
    assert "| `script` | yes | string" in made["tools.md"]
    assert "| `needs` | no |" in made["plans.md"]


@pytest.mark.slow
def test_every_error_code_has_a_meaning_and_every_meaning_a_code() -> None:
    assert faults_of_codes() == []


@pytest.mark.parametrize(
    ("source", "codes"),
    [
        ('RunError("run_timeout", "…")', ["run_timeout"]),
        ('problem(404, "not_found", "…")', ["not_found"]),
        ('class A:\n    code: ClassVar[str] = "a_code"', ["a_code"]),
        ('CODES = {1: "one", 2: "two"}', ["one", "two"]),
        ('RunError(error.code, "…")', []),
        ('_failed("a sentence")', []),
    ],
)
def test_codes_are_found_wherever_they_are_given(source: str, codes: list[str]) -> None:
    assert list(codes_in(source)) == codes
