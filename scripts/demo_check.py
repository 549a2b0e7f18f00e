"""Stream one chat completion through slotd on a free port, as a user would; exit 0 if that works."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
SLOTD = [sys.executable, "-m", "slotd"]
CONFIG = str(ROOT / "config" / "demo.toml")
START_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 600.0  # the model may have to be fetched first


def main() -> int:
    subprocess.run([*SLOTD, "pull", "smollm2", "-c", CONFIG], check=True)
    server = subprocess.Popen(
        [*SLOTD, "serve", "-c", CONFIG, "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(START_TIMEOUT_S + ANSWER_TIMEOUT_S, server.kill)
    watchdog.start()
    try:
        assert server.stdout is not None
        url = ""
        for line in server.stdout:
            if line.startswith("slotd listens on "):
                url = line.split()[-1]
                break
        if not url:
            print("slotd did not start", file=sys.stderr)
            return 1
        text = stream(url)
        print(f"stopping {url}")
        server.terminate()
        code = server.wait(timeout=30)
        print(f"slotd stopped with exit code {code}")
        return 0 if text.strip() and code == 0 else 1
    finally:
        watchdog.cancel()
        if server.poll() is None:
            server.kill()
            server.wait()


def stream(url: str) -> str:
    body = {
        "model": "chat",
        "stream": True,
        "max_tokens": 48,
        "messages": [{"role": "user", "content": "Say hello to the world in one sentence."}],
    }
    began = time.monotonic()
    first: float | None = None
    text = ""
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=ANSWER_TIMEOUT_S) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise SystemExit(f"the stream ended in an error: {event['error']['message']}")
            for choice in event["choices"]:
                piece = choice["delta"].get("content") or ""
                if piece and first is None:
                    first = time.monotonic() - began
                text += piece
                print(piece, end="", flush=True)
    print()
    if first is not None:
        print(f"time to the first token, with the load of the model: {first:.2f} s")
    return text


if __name__ == "__main__":
    sys.exit(main())
