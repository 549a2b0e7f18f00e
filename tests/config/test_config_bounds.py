"""The bounds of connections in the configuration, and warnings that come with errors."""

from __future__ import annotations

import pytest
from config_reader import parse, problems

from slotd.config import Config
from slotd.config.effect import Effect, effect_of
from slotd.errors import ConfigInvalid


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("max_sockets = 0", "server.max_sockets: must be at least 1, not 0"),
        ("head_timeout_s = 0", "server.head_timeout_s: must be more than 0, not 0"),
        ("list_aliases = 1", "server.list_aliases: must be true or false, not the number 1"),
    ],
)
def test_a_bound_must_be_one(line: str, fault: str) -> None:
    assert problems(f"[server]\n{line}") == [fault]


def test_the_bounds_are_those_of_the_file_and_hold_at_once() -> None:
    plain = Config().server
    assert (plain.max_sockets, plain.head_timeout_s, plain.list_aliases) == (4096, 30, False)
    config = parse("[server]\nmax_sockets = 7\nhead_timeout_s = 1.5\nlist_aliases = true").config
    assert (config.server.max_sockets, config.server.head_timeout_s) == (7, 1.5)
    assert config.server.list_aliases
    for key in ("max_sockets", "head_timeout_s", "list_aliases"):
        assert effect_of(("server",), key, config) is Effect.NOW


def test_an_invalid_configuration_keeps_its_warnings() -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse('[server]\nprot = 1\n[models.m]\nsource = "file:/nowhere/m.gguf"')
    assert len(caught.value.problems) == 1
    assert caught.value.details["warnings"] == ["models.m.source: there is no file /nowhere/m.gguf"]
