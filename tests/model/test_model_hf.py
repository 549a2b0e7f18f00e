"""The ``hf:`` source against a stand-in for ``huggingface_hub`` that keeps to the calls used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio
import trio.testing
from model_server import find

from slotd.model import fetch_hf as fetch_hf_module
from slotd.model.errors import ModelFetchFailed
from slotd.model.progress import Progress
from slotd.model.source import ModelRef
from slotd.model.store import ModelStore

STAND_IN = """
import os, sys, types, pathlib, time
class GatedRepoError(Exception): pass
class RepositoryNotFoundError(Exception): pass
class EntryNotFoundError(Exception): pass
class RevisionNotFoundError(Exception): pass
errors = types.ModuleType("huggingface_hub.errors")
for kind in (GatedRepoError, RepositoryNotFoundError, EntryNotFoundError, RevisionNotFoundError):
    setattr(errors, kind.__name__, kind)
sys.modules["huggingface_hub.errors"] = errors
def hf_hub_url(repo, file, revision=None):
    return f"{repo}@{revision}:{file}"
def get_hf_file_metadata(url):
    if url.startswith("gated/"):
        raise GatedRepoError("401 Client Error.\\nAccess is restricted.")
    if url.startswith("none/"):
        raise RepositoryNotFoundError("404 Client Error.")
    return types.SimpleNamespace(size=1000)
def hf_hub_download(repo, file, revision=None, local_dir=None):
    target = pathlib.Path(local_dir, file)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"x" * 400)
    if repo == "slow/repo":
        time.sleep(600)
    target.write_bytes(b"x" * 1000)
"""


@pytest.fixture
async def store(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    package = tmp_path / "lib" / "huggingface_hub"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    monkeypatch.setattr(fetch_hf_module, "find_spec", lambda _name: object())
    store = ModelStore(tmp_path / "models", tool_env={"PYTHONPATH": str(package.parent)})
    await nursery.start(store.run)
    return store


async def test_a_file_of_a_repository(store: ModelStore) -> None:
    ref = ModelRef("m", "hf:org/repo@v1:sub/a.bin")
    with trio.fail_after(20):
        path = await store.fetch(ref, lambda _progress: None)
    assert path.read_bytes() == b"x" * 1000
    assert path.name == "a.bin"
    assert store.present(ref) == path


async def test_cancelling_ends_the_helper_and_keeps_its_files(store: ModelStore, tmp_path: Path) -> None:
    seen: list[Progress] = []

    async def ask() -> None:
        await store.fetch(ModelRef("m", "hf:slow/repo:a.bin"), seen.append)

    async with trio.open_nursery() as asker:
        asker.start_soon(ask)
        with trio.fail_after(20):
            while Progress("downloading", 400, 1000) not in seen:
                await trio.testing.wait_all_tasks_blocked(0.01)
        asker.cancel_scope.cancel()
    assert [p.stat().st_size for p in find(tmp_path, "models/*/part/hf/a.bin")] == [400]


@pytest.mark.parametrize(("repo", "reason"), [("gated/repo", "refused"), ("none/repo", "not_found")])
async def test_what_the_site_refuses(store: ModelStore, repo: str, reason: str) -> None:
    with trio.fail_after(20), pytest.raises(ModelFetchFailed, match="HF_TOKEN") as caught:
        await store.fetch(ModelRef("m", f"hf:{repo}:a.bin"), lambda _progress: None)
    assert caught.value.reason == reason


async def test_without_the_library(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_hf_module, "find_spec", lambda _name: None)
    with pytest.raises(ModelFetchFailed, match=r"pip install 'slotd\[hf\]'") as caught:
        await store.fetch(ModelRef("m", "hf:org/repo:a.bin"), lambda _progress: None)
    assert caught.value.reason == "tool_missing"
    assert "huggingface_hub" not in sys.modules
