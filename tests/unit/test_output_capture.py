"""Bytes to lines, and what is kept of them."""

import tracemalloc

import pytest

from worker.output import LINE_COST, OutputCapture


def captured(*chunks: bytes, max_bytes: int = 10_000, line: int = 1_000, result: int = 10_000) -> tuple[list[str], str]:
    lines: list[str] = []
    capture = OutputCapture(lines.append, max_bytes=max_bytes, line_max_bytes=line, result_max_bytes=result)
    for chunk in chunks:
        capture.write(chunk)
    return lines, capture.finish()


def test_a_line_is_emitted_when_it_is_complete_and_not_before() -> None:
    lines: list[str] = []
    capture = OutputCapture(lines.append, max_bytes=1_000, line_max_bytes=80, result_max_bytes=1_000)
    capture.write(b"one\ntw")
    assert lines == ["one"]
    capture.write(b"o\n")
    assert lines == ["one", "two"]


def test_a_last_line_without_an_end_is_emitted_too() -> None:
    assert captured(b"one\ntwo") == (["one", "two"], "one\ntwo")


def test_no_output_is_no_line() -> None:
    assert captured() == ([], "")


def test_empty_lines_are_lines() -> None:
    assert captured(b"\n\nend\n")[0] == ["", "", "end"]


def test_windows_line_ends_are_line_ends_even_across_chunks() -> None:
    assert captured(b"one\r", b"\ntwo\r\n")[0] == ["one", "two"]


@pytest.mark.parametrize("at", range(1, 12))
def test_a_character_cut_by_a_chunks_border_is_whole_again(at: int) -> None:
    data = "aé€😀z\n".encode()
    assert captured(data[:at], data[at:])[0] == ["aé€😀z"]


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert captured(b"\xff\xfea\xc3\n")[0] == ["\ufffd\ufffda\ufffd"]


def test_control_characters_stay() -> None:
    assert captured(b"\x00\x1b[31mred\x07\n")[0] == ["\x00\x1b[31mred\x07"]


def test_a_line_that_is_too_long_comes_in_pieces_that_lose_nothing() -> None:
    text = "0123456789" * 25
    assert captured(text.encode(), b"\nnext\n", line=80)[0] == [
        text[:80],
        text[80:160],
        text[160:240],
        text[240:],
        "next",
    ]


def test_pieces_never_cut_a_character() -> None:
    lines, _ = captured("€".encode() * 100 + b"\n", line=80)
    assert "".join(lines) == "€" * 100
    assert max(len(line.encode()) for line in lines) <= 80


def test_a_line_exactly_as_long_as_allowed_has_no_empty_piece_after_it() -> None:
    assert captured(b"x" * 80, b"\n", b"y" * 160, b"\nend\n", line=80)[0] == ["x" * 80, "y" * 80, "y" * 80, "end"]


def test_a_line_that_never_ends_is_emitted_as_it_comes_and_not_gathered() -> None:
    lines: list[str] = []
    capture = OutputCapture(lines.append, max_bytes=10_000, line_max_bytes=80, result_max_bytes=80)
    capture.write(b"x" * 200)
    assert lines == ["x" * 80, "x" * 80]


def test_what_is_over_the_limit_is_counted_and_said_once() -> None:
    kept = 3
    lines, _ = captured(b"12345\n" * 100, b"12345\n" * 100, max_bytes=kept * (5 + LINE_COST))
    assert lines == [
        *["12345"] * kept,
        "… 197 more lines (1.2 KiB) not kept; the limit is STEP_OUTPUT_MAX_BYTES",
    ]


def test_the_count_of_what_is_over_the_limit_includes_a_last_line_without_an_end() -> None:
    lines, _ = captured(b"12345\n12345\nend", max_bytes=5 + LINE_COST)
    assert lines == ["12345", "… 2 more lines (9 B) not kept; the limit is STEP_OUTPUT_MAX_BYTES"]


def test_output_that_just_fits_has_no_note() -> None:
    assert captured(b"12345\n", max_bytes=5 + LINE_COST)[0] == ["12345"]


def test_a_million_empty_lines_are_not_a_million_events() -> None:
    lines, _ = captured(b"\n" * 1_000_000, max_bytes=1_000_000)
    assert len(lines) == 1_000_000 // LINE_COST + 1


def test_the_result_keeps_all_of_a_short_output() -> None:
    assert captured(b"one\ntwo\n", result=8)[1] == "one\ntwo\n"


def test_the_result_keeps_beginning_and_end_of_a_long_output() -> None:
    _, text = captured(b"begin" + b"." * 990, b"." * 1000 + b"end", result=10, max_bytes=100)
    assert text == "begin\n… 1.9 KiB left out here; the limit is STEP_RESULT_MAX_BYTES …\n..end"


def test_the_result_never_cuts_a_character() -> None:
    _, text = captured("€".encode() * 1000, result=100)
    assert "\ufffd" not in text


def test_a_gigabyte_needs_no_more_memory_than_its_limits() -> None:
    chunk = (b"a line of some output\n" * 3000)[: 64 * 1024]
    lines: list[str] = []
    capture = OutputCapture(lines.append, max_bytes=100_000, line_max_bytes=8192, result_max_bytes=16_384)
    tracemalloc.start()
    for _ in range(1_000_000_000 // len(chunk)):
        capture.write(chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    capture.finish()
    assert peak < 2_000_000
    assert "(953." in lines[-1]
