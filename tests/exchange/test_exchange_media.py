"""Pictures and sound for a model that reads only text: found, refused before a load, told what would help."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from exchange_world import POLICY, Answer, Client, World, error_of, forever, inbound, run
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from slotd.config import parse_config
from slotd.errors import RequestUnprocessable
from slotd.exchange.media import media_in, refuse_media
from slotd.exchange.policy import Fallbacks, Policy
from slotd.slot.state import SlotState

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
WORDS = {"type": "text", "text": "What is this?"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
BLOCK = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
INPUT = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}


def body(path: str, *parts: Any) -> bytes:
    field = "input" if path == RESPONSES else "messages"
    document = {"model": "m", field: [{"role": "user", "content": "Hi."}, {"role": "user", "content": parts}]}
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "parts", "found"),
    [
        (CHAT, [WORDS, PICTURE], ("a picture",)),
        (CHAT, [SOUND], ("sound",)),
        (CHAT, [PICTURE, SOUND, PICTURE], ("a picture", "sound")),
        ("/apply-template", [PICTURE], ("a picture",)),
        (MESSAGES, [WORDS, BLOCK], ("a picture",)),
        (MESSAGES, [{"type": "tool_result", "tool_use_id": "1", "content": [BLOCK]}], ("a picture",)),
        ("/v1/messages/count_tokens", [BLOCK], ("a picture",)),
        (RESPONSES, [INPUT], ("a picture",)),
        (CHAT, [WORDS], ()),
        (CHAT, [{"type": "text", "text": '"image_url" is how a part is called'}], ()),
        ("/v1/completions", [PICTURE], ()),
        ("/v1/embeddings", [PICTURE], ()),
    ],
)
def test_what_a_chat_has_besides_text(path: str, parts: list[Any], found: tuple[str, ...]) -> None:
    assert media_in(path, body(path, *parts)) == found


def test_a_response_to_mere_words_has_nothing_else() -> None:
    assert media_in(RESPONSES, b'{"input": "what is \\"image_url\\"?", "x": "image"}') == ()


@pytest.mark.parametrize(
    "odd",
    [
        b'{"messages": "image" , "x": "image"}',
        b'{"messages": [{"content": [{"type": "image_url"}]}',
        b'{"messages": [{"content": {"type": "image_url"}}]}',
        b'{"messages": [{"content": [{"type": 7}, {"type": "image_url"}]}]}',
        b'"image"',
        b'\xff"image"',
    ],
)
def test_what_is_no_chat_is_left_to_the_engine(odd: bytes) -> None:
    assert media_in(CHAT, odd) == ()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["image", "image_url", "user"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "content", "x"]), inner)
    ),
    max_leaves=8,
)


@given(values, st.sampled_from([CHAT, MESSAGES, RESPONSES]))
def test_any_document_is_read_or_left_alone(value: Any, path: str) -> None:
    data = json.dumps({"messages": value, "input": value, "also": "image"}).encode()
    assert set(media_in(path, data)) <= {"a picture", "sound"}


@given(st.text(), st.integers(0, 3), st.integers(0, 3))
def test_a_picture_is_found_wherever_it_stands(words: str, before: int, after: int) -> None:
    text = {"type": "text", "text": words}
    assert media_in(CHAT, body(CHAT, *[text] * before, PICTURE, *[text] * after)) == ("a picture",)
    assert media_in(CHAT, body(CHAT, *[text] * (before + after))) == ()


def test_the_refusal_names_who_can_or_says_what_to_configure() -> None:
    with pytest.raises(RequestUnprocessable, match="ask a model that takes it: eyes, lab") as caught:
        refuse_media(CHAT, body(CHAT, PICTURE), "chat", ["eyes", "lab"])
    assert (caught.value.status, caught.value.param) == (422, "messages")
    assert caught.value.details == {"slot": "chat", "needs": ["vision"], "slots": ["eyes", "lab"]}
    with pytest.raises(RequestUnprocessable, match="mmproj"):
        refuse_media(CHAT, body(CHAT, PICTURE), "chat", [])
    refuse_media(CHAT, body(CHAT, WORDS), "chat", [])


# --- who is known to read only text -----------------------------------------------------------

CONFIG = """
[models.m]
source = "file:/m.gguf"
labels = ["vision"]
[slots.plain]
type = "llm"
engine = "llama-cpp"
model = "m"
[slots.eyes]
type = "llm"
engine = "llama-cpp"
model = "m"
options = { mmproj = "/p.gguf" }
[slots.args]
type = "llm"
engine = "llama-cpp"
model = "m"
options = { extra_args = ["--mmproj=/p.gguf"] }
[slots.unknown]
type = "llm"
engine = "external"
url = "http://127.0.0.1:1"
labels = ["vision"]
[slots.vectors]
type = "embedding"
engine = "llama-cpp"
model = "m"
"""


def test_a_llama_cpp_without_a_projector_reads_only_text_whatever_its_labels_say() -> None:
    policy = Policy.of(parse_config(CONFIG, "test", Path("."), env={}).config)
    assert policy.text_only == {"plain"}
    assert policy.seeing == ("eyes", "args", "unknown")


# --- in a request's way -----------------------------------------------------------------------

BLIND = replace(POLICY, text_only=frozenset({"chat"}), seeing=("eyes",))


async def test_a_picture_is_refused_before_anything_is_loaded_for_it(autojump_clock: MockClock) -> None:
    world, client = World(policy=BLIND), Client()
    record = await run(world, client, inbound(body(CHAT, WORDS, PICTURE)))
    assert (client.status, error_of(client)["code"]) == (422, "request.unprocessable")
    assert "eyes" in error_of(client)["message"]
    assert (world.asked, world.sent) == ([], [])
    assert record.error == "request.unprocessable"


async def test_anthropics_clients_read_it_as_their_own_error(autojump_clock: MockClock) -> None:
    world, client = World(policy=BLIND), Client()
    await run(world, client, inbound(body(MESSAGES, BLOCK), MESSAGES))
    assert (client.status, json.loads(client.body)["type"]) == (422, "error")
    assert error_of(client)["type"] == "invalid_request_error"


@pytest.mark.parametrize("policy", [BLIND, POLICY], ids=["blind", "unknown"])
async def test_words_and_what_may_be_seen_go_through(autojump_clock: MockClock, policy: Policy) -> None:
    world, client = World(Answer(b"{}"), policy=policy), Client()
    sent = body(CHAT, WORDS) if policy is BLIND else body(CHAT, PICTURE)
    await run(world, client, inbound(sent))
    assert client.status == 200
    assert world.sent == [(CHAT.encode(), sent)]


async def test_one_that_stands_in_must_be_able_to_see_too(autojump_clock: MockClock) -> None:
    policy = replace(
        POLICY,
        fallbacks={"chat": Fallbacks(("small",), 5.0)},
        text_only=frozenset({"small"}),
        seeing=("chat",),
    )
    world, client = World(policy=policy, chat=[forever], small=[]), Client()
    world.show("small", state=SlotState.READY, models=("listed-small",), max_parallel=4)
    await run(world, client, inbound(body(CHAT, PICTURE)))
    assert trio.current_time() == 5
    assert (client.status, error_of(client)["details"]["slot"]) == (422, "small")
    assert world.sent == []
