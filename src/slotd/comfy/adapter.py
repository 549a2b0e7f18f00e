"""OpenAI's image endpoints, served by ComfyUI."""

from __future__ import annotations

import base64
import random
import time
import uuid
from dataclasses import dataclass
from functools import partial

import msgspec

from slotd.adapt import Call, Reply
from slotd.comfy.api import Api, Entry, Picture
from slotd.comfy.asked import SEED_MAX, Asked, Shelf, read_asked, values_for
from slotd.comfy.events import Line, with_line
from slotd.comfy.form import Upload
from slotd.comfy.job import run_prompt
from slotd.comfy.words import failure
from slotd.comfy.workflow import IMAGES, Workflow, render
from slotd.errors import EngineError, RequestUnprocessable
from slotd.wire.http1 import Http1Pool

__all__ = ["ComfyAdapter"]

ANSWER_MAX = 128 << 20
"""All pictures of one answer together; bytes."""

_KINDS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif"}
"""What a client's browser is told that a picture is; anything else is just bytes."""


@dataclass(frozen=True, slots=True)
class ComfyAdapter:
    """Implements :class:`slotd.adapt.contract.Adapter` for one endpoint of a ComfyUI slot.

    ``queue_timeout_s``: the longest that each prompt waits in ComfyUI's own queue.
    ``max_megapixels``: the largest picture that may be asked for.
    """

    shelf: Shelf
    queue_timeout_s: float
    max_megapixels: float

    async def serve(self, call: Call, http: Http1Pool, reply: Reply) -> None:
        """See :meth:`slotd.adapt.contract.Adapter.serve`.

        As many prompts as are needed for the pictures asked for, one after
        another; each is one place in ComfyUI's queue, so that others get their
        turns in between.
        """
        asked = read_asked(call)
        workflow = self.shelf.pick(asked.model, call.model)
        self._check_size(asked)
        _check_pictures(workflow, asked)
        api = Api(http)
        files = await _upload(api, workflow, asked, reply)
        work = partial(self._draw, api, workflow, asked, files, reply)
        data = await with_line(http.address, work)
        await reply.document(msgspec.json.encode({"created": int(time.time()), "data": data}))

    def _check_size(self, asked: Asked) -> None:
        width, height = asked.size or (0, 0)
        if width * height > self.max_megapixels * 1_000_000:
            raise RequestUnprocessable(
                f"`size`: {width}x{height} is more than {self.max_megapixels:g} megapixels "
                "(options.max_megapixels)",
                param="size",
            )

    async def _draw(
        self, api: Api, workflow: Workflow, asked: Asked, files: dict[str, str], reply: Reply, line: Line
    ) -> list[dict[str, str]]:
        seed = random.getrandbits(63) if asked.seed is None else asked.seed
        if asked.seed is None:
            seed = workflow.defaults.get("seed", seed)
        drawn: list[dict[str, str]] = []
        room = ANSWER_MAX
        prompts = 0
        while (left := asked.n - len(drawn)) > 0:
            values = values_for(workflow, asked, seed=(seed + prompts) % (SEED_MAX + 1), n=left, files=files)
            about = f"picture {len(drawn) + 1} of {asked.n}, " if asked.n > 1 else ""
            graph = render(workflow, values)
            entry = await run_prompt(api, line, graph, reply, wait_s=self.queue_timeout_s, about=about)
            prompts += 1
            for picture in _pictures(workflow, entry)[:left]:
                data, kind = await api.view(picture, room)
                reply.progressed()
                room -= len(data)
                drawn.append(_item(data, kind, asked, reply))
        return drawn


def _pictures(workflow: Workflow, entry: Entry) -> list[Picture]:
    """At least one. Raises :class:`EngineError` if the prompt failed or gave none."""
    if not entry.succeeded:
        words, facts = failure(entry.messages)
        raise EngineError(words, details=facts)
    found = [picture for node in workflow.outputs for picture in entry.pictures.get(node, ())]
    if not found:
        nodes = ", ".join(workflow.outputs)
        raise EngineError(f"ComfyUI: the workflow ended well, but put out no picture (node {nodes})")
    return found


def _item(data: bytes, kind: str, asked: Asked, reply: Reply) -> dict[str, str]:
    if asked.response_format == "b64_json":
        return {"b64_json": base64.b64encode(data).decode()}
    known = kind.partition(";")[0].strip().lower()
    return {"url": reply.keep(data, known if known in _KINDS else "application/octet-stream")}


def _check_pictures(workflow: Workflow, asked: Asked) -> None:
    """Raises :class:`RequestUnprocessable` if the request has not the pictures that the workflow works on."""
    wanted, given = workflow.images, len(asked.images)
    if wanted == 0:
        return  # pictures from words alone: others are no part of that request
    if given != wanted:
        what = "`image` is missing" if not given else f"{given} pictures were given"
        many = "one picture" if wanted == 1 else f"{wanted} pictures"
        raise RequestUnprocessable(f"{what}: this workflow works on {many}", param="image")
    if ("mask" in workflow.uses) != (asked.mask is not None):
        what = "takes no mask" if asked.mask is not None else "needs a mask"
        raise RequestUnprocessable(f"this workflow {what}", param="mask")


async def _upload(api: Api, workflow: Workflow, asked: Asked, reply: Reply) -> dict[str, str]:
    """Give ComfyUI the pictures to work on; their names by placeholder."""
    if not workflow.images:
        return {}
    given: dict[str, Upload] = dict(
        zip((name for name in IMAGES if name in workflow.uses), asked.images, strict=True)
    )
    if asked.mask is not None:
        given["mask"] = asked.mask
    files: dict[str, str] = {}
    for name, upload in given.items():
        # The client's own name for it is of no use here, and might be of harm.
        ending = _KINDS.get(upload.content_type.partition(";")[0].strip().lower(), "png")
        files[name] = await api.upload(upload, f"{uuid.uuid4().hex}.{ending}")
        reply.progressed()
    return files
