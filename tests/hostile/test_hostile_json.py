"""JSON from a stranger: Python's reader takes more than JSON, and all the memory that is asked."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.hostile import FUZZ, time_limit

from tightfit.records import load_json, parse_json, shown

MOST_BYTES = 50_000_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": 1, "b": {"a": 1, "a": 2}}', "'a' is there twice"),
        (b"[" * 1_000_000, "nested deeper"),
        (b"[" * 65 + b"]" * 65, "nested deeper"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested deeper"),
        (b'{"a": NaN}', "'a' is nan"),
        (b'{"a": [1, -Infinity]}', "'a' is -inf"),
        (b'{"a": 1e400}', "'a' is inf"),
        (b'{"a": ' + b"9" * 4000 + b"}", "'a' is a number of 13288 bits"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "4300 digits"),
        (b'{"a": "\xff"}', "utf-8"),
        ('{"a": 1}'.encode("utf-16"), "utf-8"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b"[" + b"[]," * 20_000_000, "more than 10000000 values"),
        (b"", "Expecting value"),
    ],
)
def test_refused_at_once_and_in_little_memory(text: bytes, reason: str) -> None:
    tracemalloc.start()
    try:
        with time_limit(), pytest.raises(ValueError, match=reason):
            parse_json(text)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ['{"a": [1, 2.5, "\\ud83d\\ude00", null, true]}', "[[]]", "-1e-5"])
def test_what_is_json_is_taken_as_pythons_reader_takes_it(text: str) -> None:
    assert parse_json(text.encode()) == json.loads(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.text() | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@FUZZ
@given(JSON)
def test_every_document_survives(document: object) -> None:
    for ascii_only in (True, False):
        assert parse_json(json.dumps(document, ensure_ascii=ascii_only).encode()) == document


def test_a_file_above_the_limit_is_not_read(tmp_path) -> None:
    file = tmp_path / "big.json"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)  # a hole: it takes no room
    with time_limit(), pytest.raises(ValueError, match="1099511627776 bytes"):
        load_json(file)


def test_a_value_in_a_sentence_is_short() -> None:
    nested: list[object] = []
    for _ in range(500):
        nested = [nested]
    for value in ("x" * 10**6, list(range(10**6)), 10**4000, nested, {"a" * 10**6: 1}):
        assert len(shown(value)) < 300
    assert shown("\x1b[2J") == "'\\x1b[2J'"
