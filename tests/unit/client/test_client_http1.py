from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.client.http1 import MAX_HEAD_BYTES, BrokenAnswer, Reader, Reply, header, request
from tidemill.core.errors import ConfigError

STATED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A:  b \r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=1\r\nhel\r\n2\r\nlo\r\n0\r\nx-late: 1\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + STATED
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"


def test_a_request_is_written() -> None:
    assert request("POST", "/a", [("host", "h")], b"{}") == b"POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n{}"
    assert request("GET", "/a", [("host", "h")], None) == b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n"


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "ä", "", " "])
def test_no_value_begins_another_header(value: str) -> None:
    with pytest.raises(ConfigError, match="api_key: must be printable ASCII") as caught:
        header("api_key", value)
    assert not value.strip() or value not in str(caught.value)


@given(
    answers=st.lists(st.sampled_from([STATED, CHUNKED, EARLY, EMPTY]), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=6),
)
def test_answers_are_the_same_however_their_bytes_come(answers: list[bytes], cuts: list[int]) -> None:
    reader = Reader()
    for answer in answers:
        at, piece, reply = 0, 0, None
        while at < len(answer):
            assert reply is None
            size = cuts[piece % len(cuts)]
            reply = reader.feed(answer[at : at + size])
            at, piece = at + size, piece + 1
        assert reply is not None
        assert (reply.status, reply.body) == ((204, b"") if answer is EMPTY else (200, b"hello"))
        assert reader.keeps
        assert not reader.is_started


def test_header_names_are_lower_case_and_values_stripped() -> None:
    reply = Reader().feed(STATED)
    assert reply is not None
    assert dict(reply.headers) == {"content-length": "5", "x-a": "b"}


def test_an_answer_may_end_with_its_connection() -> None:
    reader = Reader()
    assert reader.feed(b"HTTP/1.0 200 OK\r\n\r\nhel") is None
    assert reader.feed(b"lo") is None
    assert reader.end() == Reply(200, {}, b"hello")
    assert not reader.keeps


@pytest.mark.parametrize("cut", [b"", b"HTTP/1.1 2", STATED[:-1], CHUNKED[:-4]])
def test_an_answer_that_is_cut_short_is_none(cut: bytes) -> None:
    reader = Reader()
    assert reader.feed(cut) is None
    assert reader.end() is None
    assert reader.is_started == bool(cut)


@pytest.mark.parametrize(("said", "keeps"), [(b"connection: close\r\n", False), (b"", True)])
def test_a_connection_is_kept_unless_the_server_says_so(said: bytes, keeps: bool) -> None:
    reader = Reader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\n" + said + b"content-length: 0\r\n\r\n") is not None
    assert reader.keeps == keeps


@pytest.mark.parametrize(
    "data",
    [b"SSH-2.0-x\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
     b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", b"a" * (MAX_HEAD_BYTES + 1)],
)  # fmt: skip
def test_what_is_no_answer_is_said(data: bytes) -> None:
    with pytest.raises(BrokenAnswer):
        Reader().feed(data)
