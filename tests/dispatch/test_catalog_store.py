from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slotd.dispatch import FileStore, StoreTrouble
from slotd.dispatch.catalog import SavedCatalog, decode_catalogs, encode_catalogs

SAVED = {"lab": SavedCatalog("http://lab/v1", ("a", "b"), 3.0)}


@given(
    st.dictionaries(st.text(), st.builds(SavedCatalog, st.text(), st.tuples(st.text()), st.floats(0, 1e9)))
)
def test_what_is_encoded_is_decoded(saved: dict[str, SavedCatalog]) -> None:
    assert decode_catalogs(encode_catalogs(saved, 100.0), 100.0) == saved


def test_catalogs_age_while_slotd_is_away_and_never_grow_younger() -> None:
    data = encode_catalogs(SAVED, 100.0)
    assert decode_catalogs(data, 160.0)["lab"].age_s == 63.0
    assert decode_catalogs(data, 10.0)["lab"].age_s == 3.0


@given(st.binary())
def test_garbage_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 # of any message: none is ours
        decode_catalogs(data, 0.0)


async def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "state" / "catalogs.json"
    store = FileStore(path)
    assert await store.load() == {}
    await store.save(SAVED)
    await store.save({"other": SAVED["lab"]})
    loaded = await store.load()
    assert set(loaded) == {"other"}  # replaced, not merged
    assert loaded["other"].models == ("a", "b")
    assert os.listdir(path.parent) == ["catalogs.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 1}',
        json.dumps({"version": 99, "saved_unix": 0, "upstreams": {}}).encode(),
    ],
)
async def test_a_file_that_cannot_be_used_is_typed_trouble(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "catalogs.json"
    path.write_bytes(content)
    store = FileStore(path)
    with pytest.raises(StoreTrouble, match=r"catalogs\.json"):
        await store.load()
    await store.save(SAVED)
    assert set(await store.load()) == {"lab"}


async def test_a_directory_in_the_way_is_typed_trouble_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "catalogs.json"
    path.mkdir()
    store = FileStore(path)
    with pytest.raises(StoreTrouble):
        await store.load()
    with pytest.raises(StoreTrouble):
        await store.save(SAVED)
    assert os.listdir(tmp_path) == [path.name]


def test_a_config_compiles_to_its_table() -> None:
    from slotd.config import Config
    from slotd.dispatch.from_config import compile_config

    config = Config.model_validate(
        {
            "dispatcher": {"prefetch_grace_ms": 20, "max_catalog_models": 7},
            "models": {"m": {"source": "file:/m.gguf"}},
            "slots": {
                "chat": {
                    "type": "llm",
                    "engine": "llama-cpp",
                    "model": "m",
                    "aliases": ["gpt"],
                    "default": True,
                }
            },
            "upstreams": {"lab": {"url": "http://lab/v1", "auth": "bearer", "key_env": "K", "models": ["x"]}},
            "bindings": [{"match": "a*", "slot": "chat"}, {"match": "b*", "upstream": "lab", "model": "x"}],
        }
    )
    table = compile_config(config)
    named = [
        (r.kind, r.match, [str(t) for t in r.targets], r.model) for r in table.rows() if r.kind != "default"
    ]
    assert named == [
        ("slot", "chat", ["slot:chat"], None),
        ("slot", "slotd/chat", ["slot:chat"], None),
        ("model", "m", ["slot:chat"], None),
        ("alias", "gpt", ["slot:chat"], None),
        ("binding", "a*", ["slot:chat"], None),
        ("binding", "b*", ["upstream:lab"], "x"),
    ]
    assert (table.limits.prefetch_grace_s, table.limits.max_catalog_models) == (0.02, 7)
    lab = table.upstreams["lab"]
    assert (lab.auth, lab.key_env, lab.models) == ("bearer", "K", ("x",))
