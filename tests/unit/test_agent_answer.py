"""What an agent may answer, and what is refused."""

from typing import Any

import pytest

from backplane.settings.fixed import HANDLER_VALUE_MAX_BYTES
from worker.tools import agent_answer
from worker.tools.agent_answer import AgentAnswer, AgentFailed, AnswerBrokenOff, AnswerWrong, answer_of

NDJSON, SSE, JSON = "application/x-ndjson", "text/event-stream", "application/json"


def read(type: str, body: bytes, size: int = 1_000_000) -> tuple[bytes, AgentAnswer]:
    """What watchers see, and the answer at its end, from pieces of this size."""
    answer, shown = answer_of(type), bytearray()
    for at in range(0, len(body), size):
        shown += b"".join(answer.feed(body[at : at + size]))
    shown += b"".join(answer.end())
    return bytes(shown), answer


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("type", "body", "shown", "result"),
    [
        (NDJSON, b'{"log": "one"}\r\n\n{"x": 1}\n{"result": {"a": [1]}}', b'one\n{"x": 1}\n', {"a": [1]}),
        (NDJSON, b'{"result": 1}\n{"result": null}\n', b"", None),
        (SSE, b': hi\nid: 1\ndata: {"log":\ndata: "one"}\n\ndata: plain\n\ndata:{"result":2}\n\n', b"one\nplain\n", 2),
        (SSE, b'data: {"result": 3}', b"", 3),
        (JSON, b'{"error": "of the data"}', b"", {"error": "of the data"}),
        ("application/vnd.example+json; charset=utf-8", b'"text"', b"", "text"),
    ],
)
def test_an_answer_gives_lines_and_the_last_result_however_it_is_cut(
    type: str, body: bytes, shown: bytes, result: Any, size: int
) -> None:
    seen, answer = read(type, body, size)
    assert (seen, answer.result, answer.has_result) == (shown, result, True)


@pytest.mark.parametrize("type", ["text/plain; charset=utf-8", "", "text/markdown"])
def test_text_is_lines_and_no_result(type: str) -> None:
    seen, answer = read(type, b"one\ntwo")
    assert (seen, answer.has_result) == (b"one\ntwo", False)


@pytest.mark.parametrize(
    ("type", "body", "error"),
    [
        (NDJSON, b"no json\n", AnswerWrong),
        (NDJSON, b"\xff\n", AnswerWrong),
        (NDJSON, b'{"result": NaN}\n', AnswerWrong),
        (NDJSON, b"[" * 100_000 + b"\n", AnswerWrong),
        (NDJSON, b'{"result": "\\u0000"}\n', AnswerWrong),
        (NDJSON, b'{"result": 1', AnswerBrokenOff),
        (NDJSON, b'{"log": "one"}\n', AnswerBrokenOff),
        (SSE, b"data: plain\n\n", AnswerBrokenOff),
        (NDJSON, b'{"error": {"message": "no paper"}}\n', AgentFailed),
        (JSON, b"", AnswerWrong),
        (JSON, b'{"a": 1', AnswerWrong),
    ],
)
def test_what_is_no_answer_is_refused(type: str, body: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        read(type, body)


@pytest.mark.parametrize(("more", "is_retryable"), [(b"", False), (b', "retryable": true', True)])
def test_an_agent_says_that_it_failed_and_whether_it_may_be_asked_again(more: bytes, is_retryable: bool) -> None:
    with pytest.raises(AgentFailed, match="no paper left") as failed:
        read(NDJSON, b'{"error": "no paper\\n left"' + more + b"}\n")
    assert failed.value.retryable is is_retryable


@pytest.mark.parametrize("type", ["application/octet-stream", "image/png"])
def test_an_answer_of_another_type_is_refused(type: str) -> None:
    with pytest.raises(AnswerWrong, match="application/x-ndjson"):
        answer_of(type)


def test_as_much_as_may_be_is_taken_and_no_byte_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_answer.TextAnswer, "max_bytes", 8)
    assert read("", b"12345678", 3)[0] == b"12345678"
    with pytest.raises(AnswerWrong, match="larger than"):
        read("", b"123456789", 3)


def test_as_many_lines_as_may_be_are_taken_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_answer, "ANSWER_MAX_LINES", 2)
    assert read("", b"1\n2\n")[0] == b"1\n2\n"
    with pytest.raises(AnswerWrong, match="more than 2 lines"):
        read("", b"1\n2\n3\n")


@pytest.mark.parametrize("type", [NDJSON, SSE])
def test_a_line_has_a_longest_length(type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_answer, "LINE_MAX_BYTES", 40)
    before = b"data: " if type == SSE else b""
    end = b"\n\n" if type == SSE else b"\n"
    assert read(type, before + b'{"result": 1}' + end)[1].result == 1
    for size in (5, 1000):
        with pytest.raises(AnswerWrong, match=r"(longer|more) than"):
            read(type, before + b'{"result": "' + b"x" * 40 + b'"}' + end, size)


@pytest.mark.parametrize("type", [NDJSON, JSON])
def test_a_result_has_a_largest_size(type: str) -> None:
    def body(size: int) -> bytes:
        value = b'"' + b"x" * (size - 2) + b'"'
        return value if type == JSON else b'{"result": ' + value + b"}\n"

    assert len(read(type, body(HANDLER_VALUE_MAX_BYTES))[1].result) == HANDLER_VALUE_MAX_BYTES - 2
    with pytest.raises(AnswerWrong):
        read(type, body(HANDLER_VALUE_MAX_BYTES + 1))
