"""Model files that no engine can load: refused at once, in the engine's own words."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from real_tools import Site, loaded_machine, narrow_slot, running, tell, write_config

pytestmark = pytest.mark.real_engine


@pytest.fixture(scope="module")
def site_of_bad_models(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("bad")
    cut, text = folder / "cut.gguf", folder / "text.gguf"
    with open(demo_model, "rb") as file:
        cut.write_bytes(file.read(5_000_000))
    text.write_text("This is no model.\n" * 100)
    models = {name: f"file:{folder}/{name}.gguf" for name in ("cut", "text", "missing")}
    slots = {name: {**narrow_slot(), "model": name} for name in models}
    with running(write_config(folder, slots, models)) as slotd:
        yield slotd


def _refused(site: Site, model: str) -> tuple[dict[str, object], float]:
    began = time.perf_counter()
    with site.openai() as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello"}])
    took = time.perf_counter() - began
    assert caught.value.status_code == 502
    error: dict[str, object] = caught.value.response.json()["error"]
    tell(f"{model}: {error['code']} after {took:.2f} s: {error['message']} {error['details']}")
    return error, took


@pytest.mark.parametrize(("model", "words"), [("cut", "corrupted or incomplete"), ("text", "invalid magic")])
def test_a_damaged_file_fails_at_once_and_tells_why(site_of_bad_models: Site, model: str, words: str) -> None:
    error, took = _refused(site_of_bad_models, model)
    assert error["code"] == "slot.load_failed"
    details = error["details"]
    assert isinstance(details, dict)
    assert words in "\n".join(details["log"])
    assert words in site_of_bad_models.http.get(f"/api/slots/{model}/logs").text
    assert site_of_bad_models.slot(model)["state"] == "error"
    assert took < (8 if loaded_machine() else 2)


def test_a_missing_file_is_named(site_of_bad_models: Site) -> None:
    error, _ = _refused(site_of_bad_models, "missing")
    assert "missing.gguf" in str(error["message"])
    assert site_of_bad_models.slot("missing")["starts"] == 0


def test_a_bad_file_is_not_tried_with_each_request_but_by_hand(site_of_bad_models: Site) -> None:
    """Nothing but a change can help, so requests get the same answer at once."""
    site = site_of_bad_models
    site.http.post("/api/slots/text/load")
    before = site.slot("text")["starts"]
    error, _ = _refused(site, "text")
    assert site.slot("text")["starts"] == before
    assert error["code"] == "slot.load_failed"
    refused = site.http.post("/api/slots/text/load")
    assert refused.json()["error"]["code"] == "slot.load_failed"
    assert site.slot("text")["starts"] == before + 1
