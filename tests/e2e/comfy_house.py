"""Slots with a fake ComfyUI, for end-to-end tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from slotd.testing import ComfyKnobs, fake_comfyui_slot
from slotd.testing.fake_png import Png, read_png

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
HOUSE = {"prompt": "a house", "size": "48x32", "steps": 4, "seed": 7}

_SHIPPED = Path(__file__).resolve().parents[2] / "config" / "workflows"


def shipped(*names: str) -> dict[str, str]:
    """Workflow files of the distribution, by name."""
    return {name: str(_SHIPPED / f"{name}.json") for name in names}


def studio(knobs: ComfyKnobs | None = None, **settings: Any) -> dict[str, Any]:
    """An image slot with the workflows that slotd comes with."""
    return fake_comfyui_slot(
        knobs,
        workflows=shipped("sdxl", "plain"),
        edit_workflows=shipped("plain-edit", "sdxl-inpaint"),
        **{"default": True, **settings},
    )


async def draw(http: httpx.AsyncClient, **more: Any) -> httpx.Response:
    """A request for a picture of a house."""
    return await http.post(GENERATIONS, json={**HOUSE, **more})


async def picture(http: httpx.AsyncClient, item: Mapping[str, Any]) -> Png:
    """The picture that an item of an answer leads to."""
    answer = await http.get(item["url"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    return read_png(answer.content)
