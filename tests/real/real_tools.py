"""slotd with real engines, as its users run it: a process, a config like the demo's, sockets.

What the tests see is what a user could see: slotd's own pages, the engine's own
``/slots``, and the process table. The shared ``site`` is in ``real_fixtures``.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai

from slotd.testing import SlotdProcess, config_text
from slotd.testing.harness import FIRST_PORT, WINDOW, WINDOWS

ROOT = Path(__file__).resolve().parents[2]
THREADS = 2
BATCH = 128
POLL_S = 0.004
LOAD_S = 60.0
"""A load takes half a second, on a machine with nothing else to do."""

CHAT, TEXT, MESSAGES, RESPONSES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
)
GENERATING = (CHAT, TEXT, MESSAGES, RESPONSES)


# --- configurations ------------------------------------------------------------------


def demo_slots() -> dict[str, dict[str, Any]]:
    """The slots of ``config/demo.toml``, on two threads each.

    Without the output check: what these tests see of the engine is to be theirs.
    """
    slots: dict[str, dict[str, Any]] = tomllib.loads((ROOT / "config" / "demo.toml").read_text())["slots"]
    for slot in slots.values():
        slot["options"]["threads"] = THREADS
        slot["check_output"] = False
    return slots


def write_config(
    folder: Path,
    slots: Mapping[str, Mapping[str, Any]],
    models: Mapping[str, str],
) -> Path:
    """A config on a free port, with these models' sources."""
    path = folder / "slotd.toml"
    more = "".join(f"[models.{name}]\nsource = {json.dumps(source)}\n" for name, source in models.items())
    # A window of ports for each test process, as the harness has them.
    first = FIRST_PORT + os.getpid() % WINDOWS * WINDOW
    more += f"[process]\nport_first = {first}\nport_last = {first + WINDOW - 1}\n"
    path.write_text(config_text(slots, server={"state_dir": str(folder / "state")}, more=more))
    return path


TEMPLATE = """\
{%- if tools %}<|im_start|>system
You may call functions, as json within <tool_call></tool_call> XML tags:
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- if message.tool_calls %}{% for call in message.tool_calls %}
<tool_call>
{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def narrow_slot() -> dict[str, Any]:
    """A slot for one request at a time, which reads prompts in small batches and knows tools."""
    options = {
        "ctx_size": 2048,
        "threads": THREADS,
        "batch_size": BATCH,
        "ubatch_size": BATCH,
        "chat_template": TEMPLATE,
    }
    return {
        "type": "llm",
        "engine": "llama-cpp",
        "model": "smollm2",
        "max_parallel": 1,
        "check_output": False,
        "options": options,
    }


# --- a running slotd, from outside ---------------------------------------------------


class Engine:
    """An engine, asked behind slotd's back."""

    def __init__(self, address: str, pid: int) -> None:
        self.address = address
        self.pid = pid
        self.url = f"http://{address}"
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=60)

    def working(self) -> list[dict[str, Any]]:
        """The engine's own slots that work on a request now."""
        answer = self.http.get("/slots")
        answer.raise_for_status()
        return [slot for slot in answer.json() if slot["is_processing"]]

    def cpu_s(self) -> float:
        """Processor time it has used: tells whether it works without disturbing it."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def decoded(self) -> int:
        """Tokens generated so far by the requests under way; 0 while prompts are read."""
        return sum(token["n_decoded"] for slot in self.working() for token in _as_list(slot["next_token"]))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


class Watcher:
    """A reader of the event stream."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def next(self, kind: str) -> dict[str, Any]:
        """The next event of this kind; others are passed over."""
        here = False
        for line in self._lines:
            if line.startswith("event: "):
                here = line[7:] == kind
            elif line.startswith("data: ") and here:
                event: dict[str, Any] = json.loads(line[6:])
                return event
        raise AssertionError(f"the event stream ended without {kind}")

    def states(self, name: str, last: str) -> list[str]:
        """The states that the slot goes through next, up to ``last``."""
        seen: list[str] = []
        while not seen or seen[-1] != last:
            event = self.next("slot.transition")
            if event["slot"] == name:
                seen.append(event["to"])
        return seen


class Site:
    """A slotd process and what its users do with it."""

    def __init__(self, process: SlotdProcess) -> None:
        self.process = process
        self.url = process.url
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=120)
        self._engines: dict[tuple[str, int], Engine] = {}

    def close(self) -> None:
        self.http.close()
        for engine in self._engines.values():
            engine.http.close()

    def get(self, path: str) -> Any:
        answer = self.http.get(path)
        answer.raise_for_status()
        return answer.json()

    def slot(self, name: str) -> dict[str, Any]:
        """The slot's row of ``/api/slots``."""
        row: dict[str, Any] = self.get(f"/api/slots/{name}")
        return row

    def load(self, name: str) -> Engine:
        self.http.post(f"/api/slots/{name}/load", timeout=LOAD_S).raise_for_status()
        return self.engine(name)

    def unload(self, name: str) -> None:
        self.http.post(f"/api/slots/{name}/unload").raise_for_status()

    def engine(self, name: str) -> Engine:
        row = self.slot(name)
        key = (str(row["address"]), int(row["pid"]))
        return self._engines.setdefault(key, Engine(*key))

    def live(self) -> list[dict[str, Any]]:
        """The requests under way."""
        rows: list[dict[str, Any]] = self.get("/api/requests")["live"]
        return rows

    def finished(self) -> list[dict[str, Any]]:
        """The records of requests that are over, newest first."""
        rows: list[dict[str, Any]] = self.get("/api/requests")["recent"]
        return rows

    @contextmanager
    def watching(self) -> Iterator[Watcher]:
        """What happens from now on, as ``/api/events`` tells it."""
        with self.http.stream("GET", "/api/events", timeout=LOAD_S) as answer:
            watcher = Watcher(answer.iter_lines())
            watcher.next("snapshot")
            yield watcher

    def quiet(self, name: str) -> bool:
        """No lease, no queue, no live request."""
        row = self.slot(name)
        return row["leases"] == 0 and row["queued"] == 0 and not self.live()

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def anthropic(self) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.url, api_key="none", max_retries=0, timeout=120)


@contextmanager
def running(config: Path, env: Mapping[str, str] | None = None) -> Iterator[Site]:
    """``slotd serve -c config`` for the length of the block; killed at its end."""
    with SlotdProcess(config, env=env) as process:
        site = Site(process)
        try:
            yield site
        finally:
            site.close()


# --- waiting and measuring -----------------------------------------------------------


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> float:
    """Ask until ``condition`` holds; the seconds that took. Other processes have no events for us."""
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > timeout_s:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(POLL_S)
    return time.perf_counter() - began


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def tell(text: str) -> None:
    """A measured result; ``pytest -rP`` shows them."""
    sys.stdout.write(f"{text}\n")


def summary(times: list[float]) -> str:
    """Seconds as milliseconds, for the test's output."""
    inner = ", ".join(f"{t * 1000:.0f}" for t in times)
    return f"median {statistics.median(times) * 1000:.0f} ms, worst {max(times) * 1000:.0f} ms of [{inner}]"


def loaded_machine() -> bool:
    """More wants to run than there are processors: latencies are then the machine's."""
    return os.getloadavg()[0] > (os.cpu_count() or 1) + 1


# --- a client that can leave at any point ---------------------------------------------


class Caller:
    """One request on a socket of its own, from a client that may vanish."""

    def __init__(self, url: str, path: str, body: Mapping[str, Any], **headers: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        data = json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", f"host: {host}:{port}", "content-type: application/json"]
        lines += [f"{key}: {value}" for key, value in headers.items()]
        lines += [f"content-length: {len(data)}", "", ""]
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._socket.sendall("\r\n".join(lines).encode() + data)

    def read_until(self, mark: bytes) -> bytes:
        """What has come, up to and with ``mark``."""
        got = b""
        while mark not in got:
            more = self._socket.recv(65536)
            if not more:
                raise AssertionError(f"the answer ended before {mark!r}: {got!r}")
            got += more
        return got

    def leave(self) -> None:
        self._socket.close()


def long_request(
    path: str, *, stream: bool, model: str = "chat", tokens: int = 1500, prompt: str = "Count."
) -> dict[str, Any]:
    """A request whose answer takes long: it runs on past the end of text."""
    body: dict[str, Any] = {
        "model": model,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
    }
    match path:
        case "/v1/completions":
            return {**body, "prompt": prompt, "max_tokens": tokens}
        case "/v1/responses":
            return {**body, "input": prompt, "max_output_tokens": tokens}
        case _:
            return {**body, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}


def hello(model: str = "chat", **more: Any) -> dict[str, Any]:
    """The smallest chat. By the slot's name: a model's is served by whichever of its slots is well."""
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, **more}
