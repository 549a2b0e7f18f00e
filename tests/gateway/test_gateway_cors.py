"""Cross-origin requests, and what stands at the root."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_server import Gateway, with_gateway

from slotd.exchange.inbound import Inbound, Outbound

PAGE = "http://localhost:3000"
PREFLIGHT = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "x-a"}


async def answer(inbound: Inbound, out: Outbound) -> None:
    raise AssertionError("nobody asks for inference here")


@pytest.mark.parametrize("origins", ['["http://localhost:3000"]', '["*"]'])
async def test_a_configured_page_may_call_without_its_preflight_knowing_a_key(
    origins: str, tmp_path: Path, express: bool
) -> None:
    async def test(gateway: Gateway) -> None:
        http = gateway.client
        asked = await http.options("/v1/chat/completions", headers=PREFLIGHT)
        assert asked.status_code == 204
        assert asked.headers["access-control-allow-headers"] == "x-a"
        assert "POST" in asked.headers["access-control-allow-methods"]
        for found in (asked, await http.get("/api/slots", headers={"origin": PAGE})):
            assert found.headers["access-control-allow-origin"] in (PAGE, "*")
            assert "Origin" in found.headers["vary"]

    await with_gateway(
        test, answer, keys={"k": None}, server=f"cors_origins = {origins}", tmp_path=tmp_path, express=express
    )


@pytest.mark.parametrize("server", ["", 'cors_origins = ["http://elsewhere"]'])
async def test_other_pages_may_not(server: str, tmp_path: Path, express: bool) -> None:
    async def test(gateway: Gateway) -> None:
        http = gateway.client
        for found in (
            await http.options("/v1/chat/completions", headers=PREFLIGHT),
            await http.get("/health", headers={"origin": PAGE}),
        ):
            assert "access-control-allow-origin" not in found.headers

    await with_gateway(test, answer, server=server, tmp_path=tmp_path, express=express)


async def test_the_root_says_who_this_is(tmp_path: Path, express: bool) -> None:
    async def test(gateway: Gateway) -> None:
        found = (await gateway.client.get("/")).json()
        assert found["name"] == "slotd"
        assert "/v1/models" in found["see"]

    await with_gateway(test, answer, tmp_path=tmp_path, express=express)
