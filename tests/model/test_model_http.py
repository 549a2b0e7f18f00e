from __future__ import annotations

import errno
import hashlib
import io
import itertools
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio
import trio.testing
from model_server import FileServer

from slotd.model import files
from slotd.model.errors import ModelFetchFailed
from slotd.model.fetch_http import Patience
from slotd.model.progress import Progress
from slotd.model.source import ModelRef
from slotd.model.store import ModelStore

BODY = os.urandom(3_000_000)
SHA = hashlib.sha256(BODY).hexdigest()
QUICK = Patience(attempts=4, first_s=0.001, max_s=0.002, asked_max_s=0.01)


@dataclass
class Bench:
    store: ModelStore
    server: FileServer
    nursery: trio.Nursery
    seen: list[Progress] = field(default_factory=list)

    def ref(self, sha256: str = SHA, path: str = "") -> ModelRef:
        return ModelRef("tiny", self.server.url + path, sha256)

    async def fetch(self, sha256: str = SHA) -> Path:
        with trio.fail_after(10):
            return await self.store.fetch(self.ref(sha256), self.seen.append)


@pytest.fixture
async def bench(tmp_path: Path, nursery: trio.Nursery) -> Bench:
    server = FileServer(BODY)
    await nursery.start(server.run)
    store = ModelStore(tmp_path / "models", patience=QUICK)
    await nursery.start(store.run)
    return Bench(store, server, nursery)


def parts(store_root: Path) -> list[Path]:
    return sorted(store_root.glob("models/*/part/*"))


async def held_and_left(bench: Bench, bytes_: int = 1_500_000) -> None:
    """Fetch until ``bytes_`` have come, then leave."""
    bench.server.hold_after = bytes_
    async with trio.open_nursery() as asker:
        asker.start_soon(bench.fetch)
        while not any(seen.done_bytes >= bytes_ for seen in bench.seen):
            await trio.testing.wait_all_tasks_blocked(0.005)
        asker.cancel_scope.cancel()
    await bench.server.gone.wait()
    bench.server.hold_after = None


async def test_downloads_verifies_and_is_present(bench: Bench) -> None:
    assert bench.store.present(bench.ref()) is None
    path = await bench.fetch()
    assert path.read_bytes() == BODY
    assert path.name == "tiny.bin"
    assert bench.store.present(bench.ref()) == path
    assert bench.store.present(bench.ref(sha256="")) == path
    assert bench.store.present(bench.ref(sha256="0" * 64)) is None
    assert bench.seen[-1] == Progress("downloading", len(BODY), len(BODY))
    assert await bench.fetch() == path
    assert len(bench.server.requests) == 1
    assert {p.name for p in path.parent.iterdir()} == {"tiny.bin", "tiny.bin.ok", "lock"}


async def test_a_changed_file_is_not_present(bench: Bench) -> None:
    path = await bench.fetch()
    with path.open("ab") as file:
        file.write(b"x")
    assert bench.store.present(bench.ref()) is None
    assert (await bench.fetch()).read_bytes() == BODY


async def test_cut_connection_is_taken_up(bench: Bench) -> None:
    bench.server.cut_after = [1_000_000, 500_000]
    path = await bench.fetch()
    assert path.read_bytes() == BODY
    ranges = [request.get("range") for request in bench.server.requests]
    assert ranges == [None, "bytes=1000000-", "bytes=1500000-"]
    assert all(request.get("if-range") == '"v1"' for request in bench.server.requests[1:])


async def test_last_modified_serves_as_validator(bench: Bench) -> None:
    bench.server.etag, bench.server.last_modified = "", "Mon, 01 Jan 2024 00:00:00 GMT"
    bench.server.cut_after = [1_000_000]
    await bench.fetch()
    assert bench.server.requests[1]["if-range"] == bench.server.last_modified


@pytest.mark.parametrize("etag", ["", 'W/"v1"'])
async def test_without_a_strong_validator_it_starts_over(bench: Bench, etag: str) -> None:
    bench.server.etag = etag
    bench.server.cut_after = [1_000_000]
    assert (await bench.fetch()).read_bytes() == BODY
    assert "range" not in bench.server.requests[1]


async def test_cancelled_keeps_the_part_and_a_new_store_goes_on(bench: Bench, tmp_path: Path) -> None:
    await held_and_left(bench)
    assert bench.store.present(bench.ref()) is None
    part = next(path for path in parts(tmp_path) if path.suffix == ".part")
    with trio.fail_after(5):
        while part.stat().st_size < 1_500_000:
            await trio.testing.wait_all_tasks_blocked(0.005)
    other = ModelStore(tmp_path / "models", patience=QUICK)
    await bench.nursery.start(other.run)
    seen: list[Progress] = []
    with trio.fail_after(10):
        path = await other.fetch(bench.ref(), seen.append)
    assert path.read_bytes() == BODY
    assert bench.server.requests[-1]["range"] == "bytes=1500000-"
    assert min(p.done_bytes for p in seen if p.phase == "downloading") >= 1_500_000


async def test_a_file_that_changed_on_the_server_is_fetched_anew(bench: Bench) -> None:
    await held_and_left(bench)
    bench.server.body, bench.server.etag = BODY[::-1], '"v2"'
    path = await bench.fetch(sha256=hashlib.sha256(BODY[::-1]).hexdigest())
    assert path.read_bytes() == BODY[::-1]


async def test_a_server_that_ignores_ranges(bench: Bench) -> None:
    await held_and_left(bench)
    bench.server.ignore_range = True
    assert (await bench.fetch()).read_bytes() == BODY


async def test_a_whole_part_needs_no_byte_more(bench: Bench, tmp_path: Path) -> None:
    await held_and_left(bench)
    part = next(path for path in parts(tmp_path) if path.suffix == ".part")
    part.write_bytes(BODY)
    assert (await bench.fetch()).read_bytes() == BODY
    assert bench.server.requests[-1]["range"] == f"bytes={len(BODY)}-"


async def test_a_part_longer_than_the_file_starts_over(bench: Bench, tmp_path: Path) -> None:
    await held_and_left(bench)
    part = next(path for path in parts(tmp_path) if path.suffix == ".part")
    part.write_bytes(BODY + b"x")
    assert (await bench.fetch()).read_bytes() == BODY


async def test_wrong_digest_is_an_error_and_leaves_nothing(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(ModelFetchFailed, match="sha256") as caught:
        await bench.fetch(sha256="0" * 64)
    assert caught.value.reason == "sha256_mismatch"
    assert caught.value.code == "slot.load_failed"
    assert caught.value.details["got"] == SHA
    assert parts(tmp_path) == []
    assert bench.store.present(bench.ref(sha256="")) is None


@pytest.mark.parametrize("status", [404, 401, 418])
async def test_a_refusal_is_final(bench: Bench, status: int) -> None:
    bench.server.status = [status] * 9
    with pytest.raises(ModelFetchFailed, match=str(status)):
        await bench.fetch()
    assert len(bench.server.requests) == 1


async def test_a_busy_server_is_asked_again(bench: Bench) -> None:
    bench.server.status = [503, 429]
    bench.server.extra = ["Retry-After: 9999"]
    await bench.fetch()
    assert len(bench.server.requests) == 3


async def test_retries_are_bounded(bench: Bench) -> None:
    bench.server.status = [500] * 99
    with pytest.raises(ModelFetchFailed, match="4 attempts") as caught:
        await bench.fetch()
    assert caught.value.reason == "unreachable"
    assert not caught.value.terminal
    assert len(bench.server.requests) == QUICK.attempts


async def test_a_server_that_always_cuts_is_given_up_though_bytes_come(bench: Bench) -> None:
    bench.server.etag = ""  # nothing to go on from
    bench.server.cut_after = [2_000_000] * 99
    with pytest.raises(ModelFetchFailed) as caught:
        await bench.fetch()
    assert caught.value.reason == "unreachable"
    assert len(bench.server.requests) <= QUICK.attempts + 1


async def test_steady_progress_restores_the_patience(bench: Bench, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "other", patience=replace(QUICK, attempts=2))
    await bench.nursery.start(store.run)
    bench.server.cut_after = [1_200_000, 1_200_000]
    with trio.fail_after(10):
        path = await store.fetch(bench.ref(), bench.seen.append)
    assert path.read_bytes() == BODY


async def test_nobody_listens(bench: Bench) -> None:
    async with trio.open_nursery() as nursery:
        other = FileServer(b"")
        await nursery.start(other.run)
        nursery.cancel_scope.cancel()
    with trio.fail_after(10), pytest.raises(ModelFetchFailed) as caught:
        await bench.store.fetch(ModelRef("tiny", other.url), bench.seen.append)
    assert caught.value.reason == "unreachable"


async def test_a_redirect_to_plain_http_is_not_followed(bench: Bench) -> None:
    bench.server.status = [302]
    bench.server.extra = ["Location: http://models.invalid/a"]
    with pytest.raises(ModelFetchFailed, match="unencrypted") as caught:
        await bench.fetch()
    assert caught.value.reason == "insecure"


async def test_a_redirect_is_followed(bench: Bench) -> None:
    bench.server.status = [302]
    bench.server.extra = ["Location: /elsewhere"]
    assert (await bench.fetch()).read_bytes() == BODY
    assert bench.server.requests[-1]["path"] == "/elsewhere"


async def test_a_web_page_is_no_gguf(bench: Bench) -> None:
    bench.server.body = b"<!DOCTYPE html><html>login"
    ref = ModelRef("tiny", bench.server.url + ".gguf")
    with trio.fail_after(10), pytest.raises(ModelFetchFailed, match="DOCTYPE") as caught:
        await bench.store.fetch(ref, bench.seen.append)
    assert caught.value.reason == "not_a_model"


async def test_size_unknown(bench: Bench) -> None:
    bench.server.with_length = False
    assert (await bench.fetch()).read_bytes() == BODY
    assert bench.seen[-1] == Progress("downloading", len(BODY), None)


async def test_too_little_room_is_refused_before_a_byte(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("slotd.model.files.shutil.disk_usage", lambda _path: usage)
    with pytest.raises(ModelFetchFailed, match="1 kB are free") as caught:
        await bench.fetch()
    assert caught.value.reason == "disk_full"


async def test_a_disk_that_fills_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    written = itertools.count(1)

    class SmallDisk(io.FileIO):
        def write(self, block: object) -> int:
            if next(written) > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(block)  # type: ignore[arg-type] # a buffer, as FileIO takes it

    def open_small(path: Path, mode: str, **_: object) -> io.FileIO:
        return SmallDisk(path, mode)

    monkeypatch.setattr(files, "open", open_small, raising=False)
    with pytest.raises(ModelFetchFailed, match="disk is full") as caught:
        await bench.fetch()
    assert caught.value.reason == "disk_full"
    assert isinstance(caught.value.__cause__, ModelFetchFailed)
    assert isinstance(caught.value.__cause__.__cause__, OSError)


async def test_progress_is_truthful(bench: Bench) -> None:
    """What is told never runs ahead of what was sent, and only grows."""
    await held_and_left(bench)
    told = [p for p in bench.seen if p.phase == "downloading"]
    assert told[-1] == Progress("downloading", 1_500_000, len(BODY))
    assert [p.done_bytes for p in told] == sorted(p.done_bytes for p in told)


async def test_progress_comes_at_most_ten_times_a_second(bench: Bench) -> None:
    started = trio.current_time()
    await bench.fetch()
    assert len(bench.seen) <= (trio.current_time() - started) * 10 + 2
