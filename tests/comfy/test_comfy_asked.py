"""Requests for pictures: what is taken, what is refused and in which words."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slotd.adapt import Call
from slotd.comfy.asked import Asked, Shelf, read_asked, values_for
from slotd.comfy.form import Upload
from slotd.comfy.workflow import Workflow, parse_workflow
from slotd.errors import NoRouteFound, RequestTooLarge, RequestUnprocessable

WORKFLOW = parse_workflow(
    json.dumps(
        {
            "1": {
                "class_type": "A",
                "inputs": {k: f"{{{{{k}}}}}" for k in ("prompt", "width", "height", "n")},
            },
            "2": {"class_type": "SaveImage", "inputs": {}},
            "slotd": {"defaults": {"width": 640}},
        }
    ).encode()
)


def asked(**body: Any) -> Asked:
    return read_asked(Call("1", "/v1/images/generations", "application/json", json.dumps(body).encode()))


def form(data: dict[str, Any], files: list[tuple[str, Any]]) -> Call:
    request = httpx.Request("POST", "http://slotd/", data=data, files=files)
    return Call("1", "/v1/images/edits", request.headers["content-type"], request.read())


def test_a_bare_prompt_is_enough_and_the_rest_is_ignored() -> None:
    assert asked(prompt="a house", user="me", quality="hd", style="vivid", size="auto") == Asked("a house")


def test_everything_that_can_be_said() -> None:
    found = asked(
        prompt="a house",
        model="sdxl",
        n=3,
        size="640x480",
        response_format="b64_json",
        seed=2**64 - 1,
        steps=7,
        negative_prompt="people",
    )
    assert found == Asked("a house", "sdxl", 3, (640, 480), "b64_json", False, 2**64 - 1, 7, "people")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "  "}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "a" * 300_000}, "prompt"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "n": 11}, "n"),
        ({"prompt": "a", "n": True}, "n"),
        ({"prompt": "a", "n": 1.5}, "n"),
        ({"prompt": "a", "size": "big"}, "size"),
        ({"prompt": "a", "size": "0x5"}, "size"),
        ({"prompt": "a", "size": "5x20000"}, "size"),
        ({"prompt": "a", "size": 512}, "size"),
        ({"prompt": "a", "response_format": "png"}, "response_format"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "seed": 2**64}, "seed"),
        ({"prompt": "a", "steps": 0}, "steps"),
        ({"prompt": "a", "negative_prompt": 1}, "negative_prompt"),
        ({"prompt": "a", "stream": 1}, "stream"),
        ({"prompt": "a", "model": 1}, "model"),
        ({"prompt": "a", "image": "http://example.org/x.png"}, "image"),
        ({"prompt": "a", "image": ""}, "image"),
        ({"prompt": "a", "image": [1]}, "image"),
        ({"prompt": "a", "image": ["YQ=="] * 5}, "image"),
        ({"prompt": "a", "image": "YQ==", "mask": "?"}, "mask"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestUnprocessable) as refused:
        asked(**body)
    assert (refused.value.status, refused.value.param) == (422, param)


def test_a_body_that_is_no_object() -> None:
    with pytest.raises(RequestUnprocessable):
        read_asked(Call("1", "/", "application/json", b"[1]"))


@given(st.binary(max_size=300))
def test_no_body_is_a_surprise(body: bytes) -> None:
    for kind in ("application/json", "multipart/form-data; boundary=x", "multipart/form-data"):
        for data in (body, b"--x\r\n" + body + b"\r\n--x--\r\n"):
            try:
                read_asked(Call("1", "/", kind, data))
            except (RequestUnprocessable, RequestTooLarge):
                continue


# --- forms -----------------------------------------------------------------------------


def test_a_form_with_a_picture_and_a_mask() -> None:
    picture = bytes(range(256)) * 50
    found = read_asked(
        form(
            {"prompt": "a hat", "n": "2", "size": "64x32", "seed": "5", "response_format": "b64_json"},
            [("image", ("my cat.png", picture, "image/png")), ("mask", ("m.png", b"mask", "image/png"))],
        )
    )
    assert found.images == (Upload("my cat.png", "image/png", picture),)
    assert found.mask == Upload("m.png", "image/png", b"mask")
    assert (found.n, found.size, found.seed, found.response_format) == (2, (64, 32), 5, "b64_json")


def test_several_pictures_keep_their_order() -> None:
    files = [("image[]", (f"{i}.png", bytes([i]), "image/png")) for i in range(1, 4)]
    assert [u.data for u in read_asked(form({"prompt": "a"}, files)).images] == [b"\1", b"\2", b"\3"]


def test_a_form_without_a_prompt() -> None:
    with pytest.raises(RequestUnprocessable, match="prompt"):
        read_asked(form({"n": "1"}, [("image", ("x.png", b"x", "image/png"))]))


def test_forms_are_bounded() -> None:
    with pytest.raises(RequestTooLarge):
        read_asked(form({"prompt": "a" * (257 << 10)}, [("image", ("x", b"x", ""))]))
    with pytest.raises(RequestTooLarge):
        read_asked(form({f"f{i}": "" for i in range(70)}, [("image", ("x", b"x", ""))]))


@pytest.mark.parametrize("head", ["", "data:image/webp;base64,"])
def test_a_picture_in_json(head: str) -> None:
    found = asked(prompt="a", image=head + base64.b64encode(b"bytes").decode())
    assert found.images == (Upload("", "image/webp" if head else "", b"bytes"),)


# --- which workflow, and with which values ----------------------------------------------


def named(model: str) -> Asked:
    return Asked("a", model)


def test_names_that_mean_the_slot_take_the_first_workflow() -> None:
    other = parse_workflow(b'{"9": {"class_type": "SaveImage"}}')
    shelf = Shelf({"first": WORKFLOW, "other": other}, frozenset({"image", "dall-e-3"}))
    for name in ("", "first", "image", "slotd/image", "dall-e-3", "served"):
        assert shelf.pick(named(name), "served") is WORKFLOW
    assert shelf.pick(named("other")) is other
    with pytest.raises(NoRouteFound, match="first, other") as refused:
        shelf.pick(named("nobody"))
    assert refused.value.details == {"known": ["first", "other"]}


def test_the_pictures_that_come_along_decide_between_workflows() -> None:
    def editing(*uses: str) -> Workflow:
        inputs = {name: f"{{{{{name}}}}}" for name in uses}
        nodes = {"1": {"class_type": "A", "inputs": inputs}, "2": {"class_type": "SaveImage"}}
        return parse_workflow(json.dumps(nodes).encode())

    plain, masked, two = editing("image"), editing("image", "mask"), editing("image", "image2")
    shelf = Shelf({"plain": plain, "masked": masked, "two": two}, frozenset({"image"}))
    file = Upload("", "", b"x")
    assert shelf.pick(Asked("a", images=(file,))) is plain
    assert shelf.pick(Asked("a", images=(file,), mask=file)) is masked
    assert shelf.pick(Asked("a", "image", images=(file, file))) is two
    assert shelf.pick(Asked("a", "masked", images=(file,))) is masked
    assert shelf.pick(Asked("a", images=(file, file, file))) is plain


def test_an_endpoint_without_workflows() -> None:
    with pytest.raises(RequestUnprocessable, match="no workflow for this endpoint"):
        Shelf({}).pick(named(""))


def test_events_are_asked_for_and_bring_the_pictures_along() -> None:
    assert asked(prompt="a", stream=True) == Asked("a", stream=True, response_format="b64_json")
    assert asked(prompt="a", stream=True, response_format="url").response_format == "url"
    picture = ("image", ("x.png", b"x", "image/png"))
    assert read_asked(form({"prompt": "a", "stream": "true"}, [picture])).stream
    assert not read_asked(form({"prompt": "a", "stream": "false"}, [picture])).stream


def test_values_are_the_clients_else_the_defaults() -> None:
    plain = values_for(WORKFLOW, asked(prompt="a"), seed=1, n=1, files={})
    assert plain == {"prompt": "a", "width": 640, "height": 1024, "n": 1}
    sized = values_for(WORKFLOW, asked(prompt="a", size="8x9"), seed=1, n=3, files={})
    assert sized == {"prompt": "a", "width": 8, "height": 9, "n": 3}
