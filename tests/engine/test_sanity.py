"""What is words and what is not, and the asking: against an engine of a few lines."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from slotd.engine.sanity import MAX_TOKENS, PROMPTS, check_output, judge
from slotd.slot.backend import Finding
from slotd.wire.http1 import Http1Pool

WORDS = [
    " girl named Emma who loved to play in the sun.",
    " Rome. The capital of the United States is New York City.\n\nThese",
    " 5, 6, 7, 8, 9, ",
    "1 1 2 3 5 8 13",
    "1000000000000",
    "好",
    "从前有一个小女孩，她喜欢在阳光下玩耍。",
    "ある日、小さな女の子が",
    "كان يا ما كان في قديم الزمان",
    "यह एक छोटी लड़की की कहानी है",
    "นิทานเรื่องหนึ่ง",
    "می‌خواهم بروم",
    "👩‍👩‍👧‍👦 🎉🎊 ❤️",
    "\U0001fae8 \U0001fadc",  # newer than this Python knows
    "def f(x):\n    return x\n",
    "\n\n\nYes",
    "{}",
    "...",
    "a",
    "A: A: B",
    "ha ha ha",
    "the end of a token cut short \ufffd",
]
NO_WORDS = {
    "": "no text at all",
    "   \n\n\t ": "only blanks",
    "\u200b\u200d \u00a0": "only blanks",
    "\0\0\0": "mostly unprintable",
    "\ufffd" * 16: "mostly unprintable",
    "\x01\x02a\x03\x04": "mostly unprintable",
    "\ue000\ue001\ue002x": "mostly unprintable",
    "6666666666666666": "one character over and over ('6666666666666666')",  # NaN in every logit of SmolLM2
    "!!!!!!!!!!!!!!!!": "one character over and over",
    "@@@@" * 16: "one character over and over ('@@@@@@@@@@@@@@@@@@@@@@@@'...)",
    "G G G G G G G G": "one character over and over",
    " the the the the the the the the": "one word over and over",
}


@pytest.mark.parametrize("text", WORDS)
def test_words_pass(text: str) -> None:
    assert judge(text) is None
    assert judge(text, list(text)) is None


@pytest.mark.parametrize("text", NO_WORDS)
def test_garbage_does_not(text: str) -> None:
    why = judge(text)
    assert why is not None
    assert why.startswith(NO_WORDS[text])


def test_one_token_over_and_over() -> None:
    tokens = ["agh"] * 16
    assert judge("".join(tokens)) is None
    assert judge("".join(tokens), tokens) == "one token over and over ('aghaghaghaghaghaghaghagh'...)"
    assert judge("".join(tokens) + "s", [*tokens, "s"]) is None


@given(st.text())
def test_it_judges_anything_and_says_so_in_one_line_of_ascii(text: str) -> None:
    why = judge(text, list(text))
    if why is not None:
        assert why.isascii()
        assert why.isprintable()
        assert len(why) < 400


@given(
    st.lists(st.sampled_from(["the", "a", "sun", "7", "好", "🎉", "é"]), min_size=2, max_size=16).filter(
        lambda w: len(set(w)) > 1
    )
)
def test_two_different_words_are_never_condemned(words: list[str]) -> None:
    assert judge(" ".join(words), words) is None


# --- asking -------------------------------------------------------------------------------


class Engine:
    """Answers each request by what ``reply`` makes of its path and body."""

    def __init__(self, reply: Callable[[str, dict[str, object]], bytes | None]) -> None:
        self._reply = reply
        self.asked: list[tuple[str, dict[str, object]]] = []
        self.hung_up = trio.Event()
        self.http = Http1Pool("127.0.0.1", 1)

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            data = b""
            while b"\r\n\r\n" not in data:
                data += await stream.receive_some()
            head, _, body = data.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            while len(body) < length:
                body += await stream.receive_some()
            path = head.split()[1].decode()
            self.asked.append((path, json.loads(body)))
            answer = self._reply(path, json.loads(body))
            if answer is not None:
                await stream.send_all(answer)
                return
            if not await stream.receive_some():
                self.hung_up.set()


def status(code: int) -> bytes:
    return b"HTTP/1.1 %d No\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}" % code


def events(*documents: object, done: bool = True) -> bytes:
    lines = [b"data: " + json.dumps(d).encode() + b"\n\n" for d in documents]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    return head + b"".join(lines) + b"data: [DONE]\n\n" * done


def text(*pieces: str) -> bytes:
    return events(*({"choices": [{"text": p}]} for p in pieces))


def chat(*pieces: str, member: str = "content") -> bytes:
    return events(*({"choices": [{"delta": {member: p}}]} for p in pieces), {"choices": []})


@asynccontextmanager
async def engine(reply: Callable[[str, dict[str, object]], bytes | None]) -> AsyncIterator[Engine]:
    found = Engine(reply)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, found.serve, listeners)
            found.http = Http1Pool("127.0.0.1", listeners[0].socket.getsockname()[1])
            yield found
            nursery.cancel_scope.cancel()


async def look(found: Engine, timeout_s: float = 5) -> Finding:
    return await check_output(found.http, model_name="m", timeout_s=timeout_s)


async def test_words_are_found_by_one_short_greedy_stream() -> None:
    async with engine(lambda path, body: text(" girl", " named", " Emma", "")) as found:
        finding = await look(found)
        assert (finding.ok, finding.text, finding.why) == (True, " girl named Emma", None)
        wanted = {
            "model": "m",
            "prompt": PROMPTS[0],
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
            "stream": True,
        }
        assert found.asked == [("/v1/completions", wanted)]


async def test_garbage_is_looked_at_twice() -> None:
    async with engine(lambda path, body: text(*"!" * 16)) as found:
        finding = await look(found)
        assert (finding.ok, finding.why) == (False, "one character over and over ('!!!!!!!!!!!!!!!!')")
        assert [body["prompt"] for _, body in found.asked] == list(PROMPTS)


async def test_garbage_once_is_chance() -> None:
    def reply(path: str, body: dict[str, object]) -> bytes:
        return text(*"!" * 16) if body["prompt"] == PROMPTS[0] else text(" Rome")

    async with engine(reply) as found:
        assert (await look(found)).ok is True


@pytest.mark.parametrize("member", ["content", "reasoning_content", "reasoning"])
async def test_an_engine_made_for_chats_is_heard_in_one(member: str) -> None:
    """It ends a bare sentence at once; that is no garbage."""
    async with engine(
        lambda path, body: chat("I", " see", member=member) if "chat" in path else text("")
    ) as found:
        assert (await look(found)).ok is True
        assert [path for path, _ in found.asked] == ["/v1/completions", "/v1/chat/completions"]


def ends(reason: str, **delta: object) -> bytes:
    """A chat's answer with no content, that ended so."""
    return events(
        {"choices": [{"delta": {"role": "assistant", "content": "", **delta}, "finish_reason": None}]},
        {"choices": [{"delta": {}, "finish_reason": reason}]},
    )


@pytest.mark.parametrize("plain", [status(404), text("")], ids=["chats only", "ends a bare sentence"])
@pytest.mark.parametrize(
    "answer",
    [ends("length"), ends("length", thinking="Let me see"), ends("tool_calls"), ends("content_filter")],
    ids=["hidden thinking", "thinking by another name", "a tool call", "a filter"],
)
async def test_what_a_chat_does_not_show_is_not_held_against_it(plain: bytes, answer: bytes) -> None:
    """It wrote something: the limit, or another hand, ended it before a word could be seen."""
    async with engine(lambda path, body: answer if "chat" in path else plain) as found:
        finding = await look(found)
        assert finding.ok is None
        assert finding.why
        assert finding.why.startswith("/v1/chat/completions shows nothing of what it wrote")


async def test_a_plain_completion_hides_nothing() -> None:
    silent = events({"choices": [{"text": "", "finish_reason": "length"}]})
    async with engine(lambda path, body: status(404) if "chat" in path else silent) as found:
        finding = await look(found)
        assert (finding.ok, finding.why) == (False, "no text at all")


async def test_garbage_in_a_chat_is_cut_by_the_limit_and_garbage_still() -> None:
    garbage = events(
        *({"choices": [{"delta": {"content": "6"}}]} for _ in range(MAX_TOKENS)),
        {"choices": [{"delta": {}, "finish_reason": "length"}]},
    )
    async with engine(lambda path, body: garbage if "chat" in path else status(404)) as found:
        finding = await look(found)
        assert (finding.ok, finding.why) == (False, "one character over and over ('6666666666666666')")


async def test_a_refusal_is_words() -> None:
    async with engine(
        lambda path, body: ends("stop", refusal="I cannot") if "chat" in path else status(404)
    ) as found:
        assert (await look(found)).ok is True


async def test_a_model_that_only_breaks_lines_after_a_bare_sentence_is_heard_in_a_chat() -> None:
    async with engine(
        lambda path, body: chat("Rome") if "chat" in path else text(*"\n" * MAX_TOKENS)
    ) as found:
        assert (await look(found)).ok is True


@pytest.mark.parametrize("nothing", [chat(), ends("stop")], ids=["no reason", "stop"])
async def test_a_chat_that_ends_by_itself_with_nothing_is_garbage(nothing: bytes) -> None:
    async with engine(lambda path, body: nothing if "chat" in path else status(404)) as found:
        finding = await look(found)
        assert (finding.ok, finding.why) == (False, "no text at all")


async def test_nothing_at_all_from_both_is_garbage() -> None:
    async with engine(lambda path, body: chat() if "chat" in path else text()) as found:
        finding = await look(found)
        assert (finding.ok, finding.why) == (False, "no text at all")


@pytest.mark.parametrize("code", [404, 405, 501])
async def test_without_completions_the_chat_is_asked(code: int) -> None:
    async with engine(lambda path, body: chat("Hello") if "chat" in path else status(code)) as found:
        assert (await look(found)).ok is True


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (status(404), "/v1/chat/completions answers with status 404"),
        (status(400), "/v1/completions answers with status 400"),
        (status(500), "/v1/completions answers with status 500"),
        (b"%$&/ no HTTP at all\r\n\r\n", ""),
        (events(done=False), "/v1/completions does not stream events"),
        (events("no object"), "/v1/completions streams what is no completion"),
        (events({"error": {"message": "out of slots"}}), "/v1/completions tells an error in its stream"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}", ""),
        (None, "no answer within 0.3 s"),
    ],
    ids=["neither", "400", "500", "no http", "no events", "no object", "error event", "cut", "silence"],
)
async def test_whatever_else_goes_wrong_says_nothing(answer: bytes | None, why: str) -> None:
    async with engine(lambda path, body: answer) as found:
        finding = await look(found, 0.3)
        assert finding.ok is None
        assert finding.why
        assert finding.why.startswith(why)


async def test_an_engine_that_cannot_be_reached_says_nothing() -> None:
    finding = await check_output(Http1Pool("127.0.0.1", 1), model_name="m", timeout_s=1)
    assert finding.ok is None


async def test_an_engine_that_never_ends_is_not_read_for_ever() -> None:
    endless = text(*(f"word{n} " for n in range(10_000)))
    async with engine(lambda path, body: endless) as found:
        finding = await look(found)
        assert finding.ok is True
        assert len(finding.text) < 10_000


async def test_cancelling_hangs_up() -> None:
    async with engine(lambda path, body: None) as found, trio.open_nursery() as nursery:
        nursery.start_soon(look, found)
        with trio.move_on_after(2):
            while not found.asked:  # noqa: ASYNC110 # a list that a server fills
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.fail_after(2):
            await found.hung_up.wait()
