from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import trio

from slotd.model.errors import ModelFetchFailed
from slotd.model.progress import Progress
from slotd.model.source import ModelRef
from slotd.model.store import ModelStore

BODY = b"GGUF and so on"
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
async def store(tmp_path: Path, nursery: trio.Nursery) -> ModelStore:
    (tmp_path / "weights.gguf").write_bytes(BODY)
    store = ModelStore(tmp_path / "models")
    await nursery.start(store.run)
    return store


def nothing(_progress: Progress) -> None:
    return


async def test_a_file_is_used_where_it_lies(store: ModelStore, tmp_path: Path) -> None:
    ref = ModelRef("m", "file:weights.gguf", base_dir=tmp_path)
    assert store.present(ref) == tmp_path / "weights.gguf"
    assert await store.fetch(ref, nothing) == tmp_path / "weights.gguf"
    assert not (tmp_path / "models").exists()


async def test_home_is_expanded(store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        store.present(ModelRef("m", "file:~/weights.gguf", base_dir=Path("/"))) == tmp_path / "weights.gguf"
    )


async def test_a_pinned_file_is_hashed_once(store: ModelStore, tmp_path: Path) -> None:
    ref = ModelRef("m", f"file:{tmp_path}/weights.gguf", SHA)
    assert store.present(ref) is None
    seen: list[Progress] = []
    path = await store.fetch(ref, seen.append)
    assert seen[-1] == Progress("verifying", len(BODY), len(BODY))
    assert store.present(ref) == path
    os.utime(path, ns=(0, 0))
    assert store.present(ref) is None


async def test_a_pinned_file_that_differs(store: ModelStore, tmp_path: Path) -> None:
    ref = ModelRef("m", f"file:{tmp_path}/weights.gguf", "0" * 64)
    with pytest.raises(ModelFetchFailed, match=SHA) as caught:
        await store.fetch(ref, nothing)
    assert caught.value.reason == "sha256_mismatch"
    assert (tmp_path / "weights.gguf").read_bytes() == BODY


async def test_a_missing_file_names_close_ones(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(ModelFetchFailed, match=r"close names there: weights\.gguf") as caught:
        await store.fetch(ModelRef("m", "file:weight.gguf", base_dir=tmp_path), nothing)
    assert caught.value.reason == "not_found"
    assert caught.value.terminal


async def test_a_folder_is_no_file(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(ModelFetchFailed, match="is a folder"):
        await store.fetch(ModelRef("m", f"file:{tmp_path}"), nothing)


async def test_a_source_that_cannot_be_read(store: ModelStore) -> None:
    ref = ModelRef("m", "nonsense")
    with pytest.raises(ModelFetchFailed, match="'m'"):
        store.present(ref)
    with pytest.raises(ModelFetchFailed, match="write file:PATH") as caught:
        await store.fetch(ref, nothing)
    assert caught.value.reason == "bad_source"


async def test_a_store_that_cannot_be_written(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "models").write_bytes(b"a file stands where the folder should be")
    with pytest.raises(ModelFetchFailed, match="cannot keep the model") as caught:
        await store.fetch(ModelRef("m", f"file:{tmp_path}/weights.gguf", SHA), nothing)
    assert caught.value.reason == "disk_error"
