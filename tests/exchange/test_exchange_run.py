"""One request through the exchange, with everything around it faked: what is answered, and what is let go."""

from __future__ import annotations

import json

import pytest
import trio
from exchange_world import JSON, SSE, Answer, Client, World, error_of, forever, inbound, run
from trio.testing import MockClock, wait_all_tasks_blocked

from slotd.dispatch import Route, SlotTarget, UpstreamTarget
from slotd.errors import (
    ActorGone,
    RouteStale,
    SlotdError,
    SlotQueueFull,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from slotd.exchange.inbound import ClientGone
from slotd.exchange.policy import Policy
from slotd.exchange.stall import LATE_S
from slotd.slot.state import Fault
from slotd.wire.broken import Broken
from slotd.wire.http1 import UpstreamBroken

ONCE = Policy(max_replays=0)


async def test_an_answer_goes_through_unchanged_and_is_accounted_for() -> None:
    world, client = World(Answer(b'{"usage":{"prompt_tokens":1,', b'"completion_tokens":2}}')), Client()
    record = await run(world, client)
    assert (client.status, client.body) == (200, b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}')
    assert (record.outcome, record.status, record.tokens_in, record.tokens_out) == ("ok", 200, 1, 2)
    assert client.headers[b"x-request-id"] == b"req-1"
    assert client.headers[b"x-slotd-route"].startswith(b"slot")
    assert world.sent == [(b"/v1/chat/completions", b'{"model":"m","stream":true}')]


@pytest.mark.parametrize(
    ("world", "status", "code"),
    [
        (World(route=ActorGone("dispatcher")), 503, "internal.actor_gone"),
        (World(route=KeyError("a bug in the dispatcher")), 500, "internal.error"),
        (World(ValueError("a bug in the client")), 500, "internal.error"),
        (World(ExceptionGroup("x", [ValueError("a bug in a nursery")])), 500, "internal.error"),
        (World(trio.TooSlowError()), 500, "internal.error"),
    ],
)
async def test_what_fails_before_the_answer_is_an_envelope(world: World, status: int, code: str) -> None:
    client = Client()
    record = await run(world, client)
    assert (client.status, error_of(client)["code"]) == (status, code)
    assert error_of(client)["type"] == "server_error"
    assert (record.outcome, record.error) == ("error", code)


async def test_a_bug_is_told_in_the_endpoints_own_dialect_and_gives_nothing_away() -> None:
    world, client = World(KeyError("secret")), Client()
    await run(world, client, inbound(path="/v1/messages"))
    document = json.loads(client.body)
    assert (document["type"], document["error"]["type"]) == ("error", "api_error")
    assert b"secret" not in client.body


@pytest.mark.parametrize("bug", [KeyError("bug"), ExceptionGroup("x", [OSError("bug")])])
async def test_a_bug_in_the_middle_of_a_stream_ends_it_on_a_frame(bug: Exception) -> None:
    world, client = World(Answer(b"data: 1\n\ndata: ha", bug, kind=SSE)), Client()
    record = await run(world, client)
    first, last = client.body.split(b"\n\n", 1)
    assert first == b"data: 1"
    assert last.startswith(b"event: error\ndata: ")
    assert last.endswith(b"\n\n")
    assert record.error == "internal.error"


async def test_a_document_that_breaks_off_cannot_be_mended() -> None:
    world, client = World(Answer(b'{"half', KeyError("bug"))), Client()
    with pytest.raises(SlotdError):
        await run(world, client)
    assert client.body == b'{"half', "nothing is glued to it"
    assert world.finished[0].error == "internal.error"


async def test_an_engine_that_breaks_off_is_told_with_the_slots_own_word(autojump_clock: MockClock) -> None:
    world, client = World(), Client()

    def dies() -> None:
        world.fate.seal(Fault("exited", "killed by the kernel", "killed by SIGKILL", ("bye",)))

    broken = UpstreamBroken("reset", bytes_received=True)
    world.answers = [Answer(b"data: 1\n\n", dies, broken, kind=SSE)]
    await run(world, client)
    told = json.loads(client.body.split(b"data: ")[-1])["error"]
    assert told["code"] == "slot.engine_lost"
    assert told["details"] == {"reason": "exited", "exit": "killed by SIGKILL", "log": ["bye"]}


async def test_the_word_may_come_late_but_is_not_waited_for_long(autojump_clock: MockClock) -> None:
    world, client = World(UpstreamBroken("reset", bytes_received=False), policy=ONCE), Client()
    await run(world, client)
    assert (client.status, error_of(client)["code"]) == (502, "slot.engine_lost")
    assert trio.current_time() < 0.3


async def test_a_stale_route_is_found_anew_and_not_for_ever() -> None:
    world, client = World(Answer(b"{}"), chat=[RouteStale("swapped"), RouteStale("swapped")]), Client()
    assert (await run(world, client)).outcome == "ok"
    world, client = World(Answer(b"{}"), chat=[RouteStale("swapped") for _ in range(3)]), Client()
    record = await run(world, client)
    assert (client.status, record.error) == (503, "dispatch.route_stale")


async def test_a_route_that_rests_on_an_older_engine_is_stale() -> None:
    old = Route(SlotTarget("chat"), "m", "m", 2, "list", slot_model="m", generation=0)
    world, client = World(Answer(b"{}"), route=old), Client()
    record = await run(world, client)
    assert record.error == "dispatch.route_stale"
    assert not world.sent


async def test_a_refusal_is_the_answer() -> None:
    world, client = World(chat=[SlotQueueFull("full", retry_after_s=7)]), Client()
    await run(world, client)
    assert (client.status, client.headers[b"retry-after"]) == (429, b"7")


@pytest.mark.parametrize("error", [UpstreamUnavailable("refused"), UpstreamTimeout("no connection")])
async def test_a_remote_that_cannot_be_reached_is_reported(error: Exception) -> None:
    world = World(error, route=Route(UpstreamTarget("far"), "m", "m", 2, "catalog"))
    await run(world, Client())
    assert world.failures == ["far"]


async def test_a_remote_that_breaks_off_is_a_bad_gateway() -> None:
    broken = Broken("gone")
    world = World(
        Answer(b"data: 1\n\n", broken, kind=SSE), route=Route(UpstreamTarget("far"), "m", "m", 2, "c")
    )
    client = Client()
    record = await run(world, client)
    assert record.error == "dispatch.upstream_unavailable"
    assert client.body.startswith(b"data: 1\n\nevent: error\n")


@pytest.mark.parametrize("kind", [JSON, SSE])
async def test_a_stall_is_told_or_breaks_the_answer_off(
    autojump_clock: MockClock, kind: tuple[bytes, bytes]
) -> None:
    world, client = World(Answer(b"data: 1\n\n", 1000.0, kind=kind)), Client()
    if kind == SSE:
        await run(world, client)
        assert json.loads(client.body.split(b"data: ")[-1])["error"]["code"] == "slot.stalled"
    else:
        with pytest.raises(SlotdError):
            await run(world, client)
    assert 5 <= trio.current_time() <= 5 + LATE_S
    assert world.finished[0].error == "slot.stalled"


async def test_a_client_that_reads_nothing_has_gone() -> None:
    world = World(Answer(b"data: 1\n\n", kind=SSE))
    with pytest.raises(ClientGone):
        await run(world, Client(reads=False))
    assert world.finished[0].outcome == "client_gone"


async def test_who_leaves_at_an_error_has_been_told_it(autojump_clock: MockClock) -> None:
    """Clients raise as they read the event, and close their connection before the stream has ended."""
    told = b'event: error\ndata: {"error": {"message": "no"}}\n\n'
    world = World(Answer(told, 1000.0, kind=SSE))
    with trio.move_on_after(1):
        await run(world, Client())
    assert (world.finished[0].outcome, world.finished[0].error) == ("error", "engine.error")


@pytest.mark.parametrize("after", range(8))
@pytest.mark.parametrize("kind", [JSON, SSE])
async def test_a_client_that_leaves_at_any_point_leaves_nothing_behind(
    after: int, kind: tuple[bytes, bytes]
) -> None:
    world = World(Answer(b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n", kind=kind))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                for _ in range(after):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

            nursery.start_soon(leave)
            await run(world, Client())
    assert world.finished[0].outcome in ("client_gone", "ok")


async def test_leaving_in_the_middle_of_an_upload_is_leaving() -> None:
    """A nursery inside the client wraps the cancellation in a group."""

    class Uploads(World):
        async def request(self, method: bytes, target: bytes, headers: object, body: bytes) -> Answer:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                await trio.sleep_forever()
            raise AssertionError

    world = Uploads()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, world, Client())
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert world.finished[0].outcome == "client_gone"
    assert world.finished[0].error is None


@pytest.mark.parametrize("kind", [JSON, SSE])
async def test_an_operator_ends_a_request(autojump_clock: MockClock, kind: tuple[bytes, bytes]) -> None:
    world, client = World(Answer(b"data: 1\n\n", 1000.0, kind=kind)), Client()
    errors: list[str] = []

    async def ask() -> None:
        try:
            await run(world, client)
        except SlotdError as error:
            errors.append(error.code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert world.records.cancel("req-1")
    record = world.finished[0]
    assert (record.outcome, record.error) == ("error", "request.cancelled")
    if kind == SSE:
        assert b"request.cancelled" in client.body
        assert not errors
    else:
        assert errors == ["request.cancelled"], "half a document cannot be mended"


async def test_an_operator_ends_a_request_that_still_waits() -> None:
    world, client = World(chat=[forever]), Client()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, world, client)
        await wait_all_tasks_blocked()
        assert world.records.live()[0].phase == "waiting"
        world.records.cancel("req-1")
    assert (client.status, error_of(client)["code"]) == (499, "request.cancelled")
