"""What an operator has changed in requests: only that, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slotd.config import parse_config
from slotd.errors import InvalidJson
from slotd.exchange.assemble.splice import edit_fields
from slotd.exchange.shaping import Shaping, shape
from slotd.wire.multipart import set_value, short_fields

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hello"}


def shaping(text: str) -> Shaping:
    slot = f'[slots.a]\ntype = "llm"\nengine = "external"\nurl = "http://127.0.0.1:1"\n{text}'
    config = parse_config(slot, "test", Path("."), env={}).config
    return Shaping.of(config.slots["a"])


def shaped(text: str, body: dict[str, Any], *, variant: str = "", path: str = CHAT) -> Any:
    return json.loads(shape(json.dumps(body).encode(), path, shaping(text), variant))


# --- parameters ----------------------------------------------------------------------

RULES = """
[slots.a.request]
strip = ["logit_bias", "seed"]
defaults = { max_tokens = 64, seed = 7 }
set = { temperature = 0.5, stop = ["x"] }
[slots.a.variants.high]
strip = ["stop"]
set = { reasoning = { effort = "high" } }
defaults = { max_tokens = 900 }
"""


def test_parameters_are_taken_out_then_filled_in_then_set() -> None:
    body = {"model": "a", "seed": 1, "temperature": 2, "logit_bias": {"1": 2}, "top_p": 0.9}
    assert shaped(RULES, body) == {
        "model": "a",
        "max_tokens": 64,
        "seed": 7,
        "temperature": 0.5,
        "stop": ["x"],
        "top_p": 0.9,
    }
    assert shaped(RULES, {"max_tokens": 5})["max_tokens"] == 5


def test_a_variant_goes_over_what_holds_for_the_slot() -> None:
    assert shaped(RULES, {"stop": ["y"], "seed": 2}, variant="high") == {
        "max_tokens": 900,
        "seed": 7,
        "temperature": 0.5,
        "reasoning": {"effort": "high"},
    }


def test_a_variant_that_the_slot_lacks_changes_nothing_more() -> None:
    assert shaped(RULES, {}, variant="strange") == shaped(RULES, {})


def test_what_is_not_touched_keeps_its_bytes() -> None:
    body = (
        b'{ "model" : "a",\n "n": 1.50, "seed": 3 , "temperature":1, "messages":[ {"role": "\\u0075ser"} ] }'
    )
    expected = b'{"max_tokens":64,"seed":7,"stop":["x"], "model" : "a",\n "n": 1.50 , "temperature":0.5,'
    assert shape(body, CHAT, shaping(RULES)) == expected + b' "messages":[ {"role": "\\u0075ser"} ] }'


def test_without_rules_there_is_no_shaping() -> None:
    assert not shaping("")
    assert not shaping('system_prompt = "x"\nrequest = { system = "never" }')
    assert shaping('system_prompt = "x"')


_keys = st.sampled_from("abcdef")
_values = st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
_fields = st.dictionaries(_keys, _values, max_size=5)


@given(_fields, st.sets(_keys), _fields, _fields, st.sampled_from([None, 1]))
def test_edit_fields_is_dictionary_arithmetic(
    body: dict[str, Any], remove: set[str], fill: dict[str, Any], put: dict[str, Any], indent: int | None
) -> None:
    def raw(values: dict[str, Any]) -> dict[str, bytes]:
        return {key: json.dumps(value).encode() for key, value in values.items()}

    text = json.dumps(body, indent=indent).encode()
    result = edit_fields(text, remove=remove, fill=raw(fill), put=raw(put))
    kept = {key: value for key, value in body.items() if key not in remove}
    assert json.loads(result) == {**fill, **kept, **put}
    if not (remove & set(body)) and not fill and not put:
        assert result == text


# --- the system prompt -----------------------------------------------------------------

MISSING = 'system_prompt = "Be brief."'
FIRST = MISSING + '\nrequest = { system = "first" }'
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("path", [CHAT, "/apply-template"])
def test_a_chat_without_a_system_message_gets_the_slots(path: str) -> None:
    assert shaped(MISSING, {"messages": [USER]}, path=path) == {"messages": [SYSTEM, USER]}
    assert shaped(MISSING, {"messages": []}, path=path) == {"messages": [SYSTEM]}


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_chat_with_one_keeps_it_unless_the_slots_comes_first(role: str) -> None:
    own = {"role": role, "content": "Shout."}
    assert shaped(MISSING, {"messages": [own, USER]}) == {"messages": [own, USER]}
    assert shaped(FIRST, {"messages": [own, USER]}) == {"messages": [SYSTEM, own, USER]}


@pytest.mark.parametrize(
    ("path", "key"),
    [("/v1/messages", "system"), ("/v1/messages/count_tokens", "system"), ("/v1/responses", "instructions")],
)
def test_where_it_is_a_field_of_its_own(path: str, key: str) -> None:
    assert shaped(MISSING, {}, path=path) == {key: "Be brief."}
    assert shaped(MISSING, {key: None}, path=path) == {key: "Be brief."}
    assert shaped(MISSING, {key: "Shout."}, path=path) == {key: "Shout."}
    assert shaped(FIRST, {key: "Shout."}, path=path) == {key: "Be brief.\n\nShout."}
    block = {"type": "text", "text": "Shout."}
    first = {"type": "text", "text": "Be brief."}
    assert shaped(FIRST, {key: [block]}, path=path) == {key: [first, block]}
    assert shaped(FIRST, {key: []}, path=path) == {key: [first]}


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/v1/embeddings"])
def test_elsewhere_there_is_none(path: str) -> None:
    assert shaped(FIRST, {"prompt": "x"}, path=path) == {"prompt": "x"}


@pytest.mark.parametrize("messages", [None, "text", [1], {"role": "user"}, 3])
def test_nonsense_is_left_for_the_engine_to_refuse(messages: Any) -> None:
    assert shaped(FIRST, {"messages": messages}) == {"messages": messages}
    assert shaped(FIRST, {}) == {}


@pytest.mark.parametrize("system", ["missing", "first"])
def test_so_is_a_text_that_is_no_utf8(system: Any) -> None:
    shaping = Shaping(prompt="x", system=system)
    for path, body in (
        ("/v1/messages", b'{"system":"\xff"}'),
        ("/v1/chat/completions", b'{"messages":[{"role":"\xff"}]}'),
    ):
        assert shape(body, path, shaping) == body


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidJson):
        shape(b"[]", CHAT, shaping(RULES))


# --- multipart -------------------------------------------------------------------------


def form(*parts: tuple[str, bytes]) -> bytes:
    body = b"".join(
        b"--BOUND\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + value + b"\r\n"
        for head, value in parts
    )
    return body + b"--BOUND--\r\n"


def test_the_model_of_a_form_is_changed_in_place() -> None:
    audio = ('name="file"; filename="model"', b"\x00\r\n--BOUN\r\nmodel" * 3000)
    body = form(audio, ('name="model"', b"whisper-1"), ('name="language"', b"en"))
    changed = set_value(body, b"model", b"base")
    assert changed == form(audio, ('name="model"', b"base"), ('name="language"', b"en"))
    assert short_fields(changed, (b"model", b"language")) == {b"model": "base", b"language": "en"}


def test_a_form_without_a_model_stays_as_it_is() -> None:
    body = form(('name="file"; filename="a.wav"', b"x"))
    assert set_value(body, b"model", b"base") == body
    assert set_value(b"--", b"model", b"base") == b"--"
