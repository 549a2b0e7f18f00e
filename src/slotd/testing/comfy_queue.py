"""The fake ComfyUI's queue and the one worker that empties it, node by node."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import trio

from slotd.testing import fake_process as process
from slotd.testing.comfy_graph import draw, in_order, steps_of
from slotd.testing.comfy_knobs import ComfyKnobs

__all__ = ["Item", "Queue", "Worker"]

Say = Callable[[str, str, dict[str, Any]], None]
"""A message to the websocket of a client: client id, type, data."""

Graph = dict[str, Any]


@dataclass(slots=True, eq=False)
class Item:
    """A prompt."""

    number: float
    id: str
    graph: Graph
    client_id: str
    outputs: list[str]
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def shown(self) -> list[Any]:
        """As the queue and the history show it."""
        return [self.number, self.id, self.graph, {"client_id": self.client_id}, self.outputs]


class _Interrupted(Exception):
    pass


class _Forgotten(Exception):
    pass


class _NodeFailed(Exception):
    pass


class Queue:
    """What waits, runs, and has been; nothing here takes time."""

    def __init__(self) -> None:
        self.pending: list[Item] = []
        self.running: Item | None = None
        self.history: dict[str, dict[str, Any]] = {}
        self.counts = dict.fromkeys(("started", "finished", "failed", "interrupted", "deleted", "nodes"), 0)
        self.interrupted = False
        self.forgotten = False
        self.changed = trio.Event()

    def stir(self) -> None:
        """Wake whoever waits for a change."""
        self.changed.set()
        self.changed = trio.Event()

    def put(self, item: Item) -> None:
        self.pending.append(item)
        self.pending.sort(key=lambda item: item.number)
        self.counts["started"] += 1
        self.stir()

    def delete(self, ids: list[str]) -> None:
        """Those that run are not touched, and none of these comes into the history."""
        kept = [item for item in self.pending if item.id not in ids]
        self.counts["deleted"] += len(self.pending) - len(kept)
        self.pending = kept

    def interrupt(self, id: str | None) -> None:
        if self.running is not None and id in (None, self.running.id):
            self.interrupted = True
            self.stir()

    def forget(self) -> None:
        """As after a restart, but that the process is the same."""
        self.pending.clear()
        self.history.clear()
        self.forgotten = self.running is not None
        self.stir()


class Worker:
    """Works on one prompt at a time."""

    def __init__(self, queue: Queue, knobs: Callable[[], ComfyKnobs], say: Say) -> None:
        self._queue = queue
        self._knobs = knobs
        self._say_to = say
        self._cached: dict[str, str] = {}
        self._put_out_before: dict[str, dict[str, Any]] = {}
        self.client_id: str | None = None
        """Whose prompt runs, or ran last."""
        self.node: str | None = None
        """The node that runs."""
        self.files: dict[tuple[str, str, str], bytes] = {}
        """Pictures by type, subfolder and name."""

    async def run(self) -> NoReturn:
        queue = self._queue
        while True:
            while not queue.pending:
                await queue.changed.wait()
            item = queue.running = queue.pending.pop(0)
            self.client_id = item.client_id
            self._say_to("", "status", self.status())
            queue.interrupted = False
            outputs: dict[str, Any] = {}
            try:
                await self._execute(item, outputs)
            except _Forgotten:
                queue.running, queue.forgotten, self.node = None, False, None
                continue
            except _Interrupted:
                queue.counts["interrupted"] += 1
            except _NodeFailed:
                queue.counts["failed"] += 1
            else:
                queue.counts["finished"] += 1
                self._note(item, "execution_success", {})
            queue.running = None
            good = item.messages[-1][0] == "execution_success"
            queue.history[item.id] = {
                "prompt": item.shown(),
                "outputs": outputs,
                "status": {
                    "status_str": "success" if good else "error",
                    "completed": good,
                    "messages": item.messages,
                },
                "meta": {},
            }
            self.node = None
            self._say_to("", "status", self.status())
            self._say(item, "executing", {"node": None})

    def status(self) -> dict[str, Any]:
        left = len(self._queue.pending) + (self._queue.running is not None)
        return {"status": {"exec_info": {"queue_remaining": left}}}

    # --- one prompt -----------------------------------------------------------------

    async def _execute(self, item: Item, outputs: dict[str, Any]) -> None:
        graph = item.graph
        order = in_order(graph, item.outputs)
        self._note(item, "execution_start", {})
        known = self._known(graph, order)
        self._note(item, "execution_cached", {"nodes": known})
        done: list[str] = []
        for id in order:
            if id in known:
                if id in item.outputs:
                    outputs[id] = self._put_out_before[id]
                    self._say(item, "executed", {"node": id, "display_node": id, "output": outputs[id]})
                continue
            self.node = id
            kind = graph[id]["class_type"]
            self._progress_state(item, id, 0, 1)
            self._say(item, "executing", {"node": id, "display_node": id})
            where = {"node_id": id, "node_type": kind, "executed": done}
            self._crash_if(kind)
            try:
                await self._work(item, id)
            except _Interrupted:
                self._note(item, "execution_interrupted", where)
                raise
            if kind == self._knobs().node_error:
                exception, _, text = self._knobs().node_exception.partition(": ")
                facts = {"exception_message": f"{text}\n", "exception_type": exception, "traceback": []}
                rest = {"current_inputs": {}, "current_outputs": known + done}
                self._note(item, "execution_error", {**where, **facts, **rest})
                raise _NodeFailed
            if id in item.outputs:
                outputs[id] = self._put_out_before[id] = self._put_out(graph, id)
                self._say(item, "executed", {"node": id, "display_node": id, "output": outputs[id]})
            self._queue.counts["nodes"] += 1
            done.append(id)
            # What follows from it is stale, also if the rest of this prompt fails.
            self._cached[id] = repr([graph[i] for i in in_order(graph, [id])])

    def _known(self, graph: Graph, order: list[str]) -> list[str]:
        """The nodes that need not be worked on again: they and all that they need are as they were."""
        return [id for id in order if self._cached.get(id) == repr([graph[i] for i in in_order(graph, [id])])]

    async def _work(self, item: Item, id: str) -> None:
        steps = steps_of(item.graph[id])
        for step in range(1, max(steps, 1) + 1):
            await self._step()
            if steps:
                self._say(item, "progress", {"value": step, "max": steps, "node": id})
                self._progress_state(item, id, step, steps)

    async def _step(self) -> None:
        await trio.sleep(self._knobs().step_s)
        while self._knobs().hold and not (self._queue.interrupted or self._queue.forgotten):
            await self._queue.changed.wait()
        if self._queue.forgotten:
            raise _Forgotten
        if self._queue.interrupted:
            self._queue.interrupted = False
            raise _Interrupted

    def _crash_if(self, kind: str) -> None:
        knobs = self._knobs()
        if kind != knobs.crash_at:
            return
        if knobs.crash_once:
            marker = Path(knobs.crash_once)
            if marker.exists():
                return
            marker.touch()
        process.die(1)

    def _put_out(self, graph: Graph, id: str) -> dict[str, Any]:
        if self._knobs().no_pictures:
            return {"images": []}
        inputs = graph[id]["inputs"]
        saves = graph[id]["class_type"] == "SaveImage"
        where = "output" if saves else "temp"
        prefix = str(inputs["filename_prefix"]) if saves else "ComfyUI_temp_fakes"
        images = []
        for data in draw(graph, id, self.read):
            name = f"{prefix}_{len(self.files) + 1:05}_.png"
            self.files[where, "", name] = data
            images.append({"filename": name, "subfolder": "", "type": where})
        return {"images": images}

    def stored(self) -> dict[str, int]:
        """How many bytes there are in each of its folders."""
        found = {"input": 0, "output": 0, "temp": 0}
        for (kind, _, _), data in self.files.items():
            found[kind] += len(data)
        return found

    def read(self, annotated: str) -> bytes:
        """The file that a node calls so. Raises :class:`KeyError`."""
        path, kind = annotated, "input"
        for ending in ("input", "output", "temp"):
            if annotated.endswith(f" [{ending}]"):
                path, kind = annotated.removesuffix(f" [{ending}]"), ending
        subfolder, _, name = path.rpartition("/")
        return self.files[kind, subfolder, name]

    # --- messages ---------------------------------------------------------------------

    def _note(self, item: Item, kind: str, data: dict[str, Any]) -> None:
        """A message that stays in the history."""
        full = {"prompt_id": item.id, **data, "timestamp": int(time.time() * 1000)}
        item.messages.append((kind, full))
        self._say_to(item.client_id, kind, full)

    def _say(self, item: Item, kind: str, data: dict[str, Any]) -> None:
        self._say_to(item.client_id, kind, {**data, "prompt_id": item.id})

    def _progress_state(self, item: Item, id: str, value: int, most: int) -> None:
        node = {"value": value, "max": most, "state": "running", "node_id": id, "prompt_id": item.id}
        node |= {"display_node_id": id, "parent_node_id": None, "real_node_id": id}
        self._say(item, "progress_state", {"nodes": {id: node}})
