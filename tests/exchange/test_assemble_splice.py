"""Changing one top-level key of a JSON object and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slotd.errors import InvalidJson
from slotd.exchange.assemble import Head, remove_field, set_field, top_level

_text = st.text(st.characters(codec="utf-8"), max_size=8)
_keys = st.one_of(st.sampled_from(["stream", "model", "a", 'q"uote', "back\\slash", "é🌟", "", "\n"]), _text)
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=8,
)
_space = st.text(" \t\r\n", max_size=3)


@st.composite
def objects(draw: st.DrawFn) -> str:
    """JSON objects as clients may spell them: any spacing, escapes, repeated keys."""

    def space() -> str:
        return draw(_space)

    members = []
    for key in draw(st.lists(_keys, max_size=5)):
        value = json.dumps(
            draw(_values), ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1]))
        )
        name = json.dumps(key, ensure_ascii=draw(st.booleans()))
        if draw(st.booleans()) and key.isalpha() and key.isascii():
            name = '"' + f"\\u{ord(key[0]):04x}" + key[1:] + '"'
        members.append(f"{space()}{name}{space()}:{space()}{value}{space()}")
    return space() + "{" + (",".join(members) or space()) + "}" + space()


@given(objects(), _keys, _values)
def test_set_field_sets_that_key_only(body: str, key: str, value: Any) -> None:
    result = set_field(body.encode(), key, json.dumps(value).encode())
    pairs: list[tuple[str, Any]] = json.loads(result, object_pairs_hook=_Pairs)
    assert [k for k, _ in pairs].count(key) == 1
    assert json.loads(result) == {**json.loads(body), key: value}


@given(objects(), _keys)
def test_remove_field_removes_that_key_only(body: str, key: str) -> None:
    result = remove_field(body.encode(), key)
    assert json.loads(result) == {k: v for k, v in json.loads(body).items() if k != key}


class _Pairs(list[tuple[str, Any]]):
    """Keeps repeated keys, which a dict would hide."""


def test_the_rest_keeps_its_bytes() -> None:
    body = b' { "temperature" : 1.50 , "stream":false,\t"messages": [ {"stream": 1E3} ] } '
    assert set_field(body, "stream", b"true") == body.replace(b"false", b"true")
    assert set_field(body, "x", b"[]") == body.replace(b"{ ", b'{"x":[], ', 1)
    assert remove_field(body, "stream") == body.replace(b' , "stream":false', b"")
    assert remove_field(body, "temperature") == body.replace(b'"temperature" : 1.50 , ', b"")
    assert remove_field(body, "absent") == body


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":2}',
        b'{"a":12,"a":1}',
        b'{"a":{"a":5},"a":5,"b":"}"}',
        # lengths chosen so that mistaking one value for the other would still line up
        b'{"a":1,"b":77,"a":{"q":0,"b":5      }}',
        b'{"\\u0061":1,"a":1}',
    ],
)
def test_a_repeated_key_is_made_unambiguous(body: bytes) -> None:
    assert json.loads(set_field(body, "new", b"0")) == {**json.loads(body), "new": 0}
    changed = set_field(body, "a", b"9")
    assert json.loads(changed) == {**json.loads(body), "a": 9}
    assert json.loads(remove_field(body, "a")) == {k: v for k, v in json.loads(body).items() if k != "a"}


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"{}", Head(None, False)),
        (b' {"model": "m", "stream": true} ', Head("m", True)),
        (b'{"stream":false,"messages":[{"model":"inner","stream":true}]}', Head(None, False)),
        (b'{"mod\\u0065l":"\\u00e9\\ud83c\\udf1f"}', Head("é🌟", False)),
        (b'{"model":null,"stream":null}', Head(None, False)),
        (b'{"model":"a","model":"b","stream":true,"stream":false}', Head("b", False)),
        (b'{"stream":"true"}', Head(None, False)),
    ],
)
def test_top_level(body: bytes, fields: Head) -> None:
    assert top_level(body) == fields


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "empty"),
        (b"hello", "not valid JSON"),
        (b'{"model":"m"', "not valid JSON"),
        (b'{"model":"\xff"}', "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b'{"model":3}', "`model` must be a string"),
        (b'{"model":["m"]}', "`model` must be a string"),
    ],
)
def test_top_level_says_what_is_wrong(body: bytes, message: str) -> None:
    with pytest.raises(InvalidJson, match=message):
        top_level(body)


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'{"a":}', b"null", b'{"a":1}x'])
def test_only_objects_can_be_changed(body: bytes) -> None:
    with pytest.raises(InvalidJson):
        set_field(body, "a", b"1")
    with pytest.raises(InvalidJson):
        remove_field(body, "a")
