"""Bytes to lines, and what is kept of them."""

import tracemalloc
from collections.abc import Callable

import pytest

from worker.steps.capture import LINE_COST, OutputCapture


def capture_into(
    lines: list[str],
    *,
    max_bytes: int = 10_000,
    line: int = 1_000,
    result: int = 10_000,
    may_emit: Callable[[], bool] = lambda: True,
    clock: Callable[[], float] = lambda: 1.0,
) -> OutputCapture:
    return OutputCapture(
        lines.append,
        lambda said, dropped: lines.append(f"{said} [{dropped}]"),
        may_emit=may_emit,
        clock=clock,
        max_bytes=max_bytes,
        line_max_bytes=line,
        result_max_bytes=result,
    )


def captured(*chunks: bytes, max_bytes: int = 10_000, line: int = 1_000, result: int = 10_000) -> tuple[list[str], str]:
    lines: list[str] = []
    capture = capture_into(lines, max_bytes=max_bytes, line=line, result=result)
    for chunk in chunks:
        capture.write(chunk)
    return lines, capture.finish()


class Allowing:
    """Allows these lines, by their number from 1."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked in self.numbers


def test_a_line_is_emitted_when_it_is_complete_and_not_before() -> None:
    lines: list[str] = []
    capture = capture_into(lines)
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
    capture = capture_into(lines, line=80, result=80)
    capture.write(b"x" * 200)
    assert lines == ["x" * 80, "x" * 80]


def test_what_is_over_the_limit_is_counted_and_said_once() -> None:
    kept = 3
    lines, _ = captured(b"12345\n" * 100, b"12345\n" * 100, max_bytes=kept * (5 + LINE_COST))
    assert lines == [
        *["12345"] * kept,
        "… 197 lines (1.2 KiB) not shown; the limit is STEP_OUTPUT_MAX_BYTES [197]",
    ]


def test_the_count_of_what_is_over_the_limit_includes_a_last_line_without_an_end() -> None:
    lines, _ = captured(b"12345\n12345\nend", max_bytes=5 + LINE_COST)
    assert lines == ["12345", "… 2 lines (9 B) not shown; the limit is STEP_OUTPUT_MAX_BYTES [2]"]


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
    capture = capture_into(lines, max_bytes=100_000, line=8192, result=16_384)
    tracemalloc.start()
    for _ in range(1_000_000_000 // len(chunk)):
        capture.write(chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    capture.finish()
    assert peak < 2_000_000
    assert "(953." in lines[-1]


def test_lines_over_the_rate_are_dropped_and_their_number_is_said_in_their_place_and_in_the_end() -> None:
    lines: list[str] = []
    capture = capture_into(lines, may_emit=Allowing(1, 2, 4))
    capture.write(b"1\n2\n3\n4\n5\n")
    assert capture.finish() == "1\n2\n3\n4\n5\n"
    assert lines == [
        "1",
        "2",
        "… 1 line not shown so far; the limit is RUN_LOG_LINES_PER_SECOND [1]",
        "4",
        "… 2 lines (4 B) not shown; the limit is RUN_LOG_LINES_PER_SECOND [2]",
    ]


def test_while_lines_are_dropped_that_is_said_once_a_second() -> None:
    lines: list[str] = []
    times = iter([1.0, 1.5, 1.9, 2.0, 2.5, 9.0])
    capture = capture_into(lines, may_emit=lambda: False, clock=lambda: next(times))
    capture.write(b"x\n" * 6)
    assert [line.rsplit("[")[1] for line in lines] == ["1]", "4]", "6]"]


def test_a_long_line_that_lost_a_piece_counts_as_one_dropped_line() -> None:
    lines: list[str] = []
    capture = capture_into(lines, line=80, may_emit=Allowing(1, 3, 4))
    capture.write(b"x" * 240 + b"\nnext\n")
    capture.finish()
    assert lines[:2] == ["x" * 80, "x" * 80]
    assert lines[3] == "next"
    assert lines[-1] == "… 1 line (81 B) not shown; the limit is RUN_LOG_LINES_PER_SECOND [1]"


def test_a_last_line_without_an_end_may_be_dropped_too() -> None:
    lines: list[str] = []
    capture = capture_into(lines, may_emit=Allowing(1))
    capture.write(b"one\ntwo")
    capture.finish()
    assert lines[-1] == "… 1 line (3 B) not shown; the limit is RUN_LOG_LINES_PER_SECOND [1]"


def test_both_limits_are_named_when_both_were_reached() -> None:
    lines: list[str] = []
    capture = capture_into(lines, may_emit=Allowing(2, 3), max_bytes=1 + LINE_COST)
    capture.write(b"1\n2\n3\n4\n")
    capture.finish()
    assert lines[-1] == "… 3 lines (6 B) not shown; the limit is STEP_OUTPUT_MAX_BYTES and RUN_LOG_LINES_PER_SECOND [3]"


def test_a_line_that_was_dropped_counts_nothing_towards_the_bytes() -> None:
    lines: list[str] = []
    capture = capture_into(lines, may_emit=Allowing(2), max_bytes=1 + LINE_COST)
    capture.write(b"a very long line that goes\n2\n")
    assert "2" in lines
