"""What slotd says of an answer in its head: lines that nothing a name contains can add to."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from slotd.exchange.answer import trace_lines
from slotd.exchange.inbound import all_headers
from slotd.exchange.record import RequestRecord


def a_record(**fields: object) -> RequestRecord:
    record = RequestRecord("req-1", "/v1/completions", "", 0.0, 0.0)
    for name, value in fields.items():
        setattr(record, name, value)
    return record


async def test_who_answered_and_where_the_time_went() -> None:
    record = a_record(target="slot:chat", tier=1, rule='model "m"', resolve_s=0.001, wait_s=0.25)
    told = dict(all_headers((), 7, trace_lines(record)))
    assert told[b"content-length"] == b"7"
    assert told[b"x-request-id"] == b"req-1"
    assert told[b"x-slotd-route"] == b'slot:chat; tier=1; rule=model "m"'
    assert re.fullmatch(rb"resolve;dur=1\.0, wait;dur=250\.0, total;dur=\d+\.\d", told[b"server-timing"])


async def test_of_what_has_not_come_about_nothing_is_told() -> None:
    told = dict(all_headers((), None, trace_lines(a_record())))
    assert told.keys() == {b"x-request-id", b"server-timing"}
    assert re.fullmatch(rb"total;dur=\d+\.\d", told[b"server-timing"])
    told = dict(all_headers((), None, trace_lines(a_record(resolve_s=0.5))))
    assert told[b"server-timing"].startswith(b"resolve;dur=500.0, total")
    record = a_record(target="slot:small", tier=1, rule="r", fallback_from="chat")
    assert b"; fallback-for=chat\r\n" in trace_lines(record)


@given(st.text(), st.text(), st.text())
async def test_no_name_makes_a_line_of_its_own(target: str, rule: str, instead: str) -> None:
    record = a_record(
        target=f"slot:{target}", tier=1, rule=rule, fallback_from=instead, resolve_s=0.0, wait_s=0.0
    )
    text = trace_lines(record)
    assert text.endswith(b"\r\n")
    assert text.count(b"\r") == text.count(b"\n") == text.count(b"\r\n") == 3
    assert b"\0" not in text
