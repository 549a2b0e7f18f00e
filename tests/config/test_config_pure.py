"""The pure parts: globs, near names, URLs, paths, headers, spelling of paths."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from slotd.config import (
    BindingConfig,
    ServerConfig,
    auth_header,
    default_state_dir,
)
from slotd.config.globs import glob_matches, is_glob
from slotd.config.names import nearest, slips
from slotd.config.problems import dotted, unknown_key
from slotd.config.urls import check_url, endpoint

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="*?["), max_size=20)

# --- globs -----------------------------------------------------------------------


@given(NAMES)
def test_a_glob_without_specials_matches_itself_only(name: str) -> None:
    assert not is_glob(name)
    assert glob_matches(name, name)
    assert not glob_matches(name, name + "x")


@given(NAMES, NAMES, NAMES)
def test_a_star_stands_for_any_run(head: str, middle: str, tail: str) -> None:
    assert glob_matches(f"{head}*{tail}", head + middle + tail)
    assert glob_matches("*", middle)


@given(NAMES, st.characters(codec="utf-8"))
def test_a_question_mark_stands_for_one(head: str, char: str) -> None:
    assert glob_matches(f"{head}?", head + char)
    assert not glob_matches(f"{head}?", head)


@given(st.text(alphabet="*?[]ab!-", max_size=30), st.text(alphabet="ab-]", max_size=60))
def test_any_pattern_has_an_answer(pattern: str, name: str) -> None:
    assert glob_matches(pattern, name) in (True, False)


def test_globs_know_case_sets_and_no_separators() -> None:
    assert BindingConfig(match="sdxl*").matches("sdxl/turbo:1")
    assert not BindingConfig(match="sdxl*").matches("SDXL-turbo")
    assert BindingConfig(match="m[12]").matches("m1")
    assert not BindingConfig(match="m[!12]").matches("m1")


# --- near names --------------------------------------------------------------------

SHORT = st.text(alphabet="abc_", max_size=7)


@given(SHORT, SHORT, SHORT)
def test_slips_are_counted_alike_both_ways(a: str, b: str, c: str) -> None:
    assert (slips(a, b) == 0) == (a == b)
    assert slips(a, b) == slips(b, a)
    assert abs(len(a) - len(b)) <= slips(a, b) <= max(len(a), len(b))
    assert slips(a + c, b + c) <= slips(a, b)


@given(st.lists(SHORT.filter(bool), max_size=5), SHORT)
def test_a_near_name_is_a_known_one(known: list[str], name: str) -> None:
    assert nearest(name, known) in (None, *known)
    if name in known:
        assert nearest(name, known) == name


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("hots", "host"),
        ("prot", "port"),
        ("Port", "port"),
        ("api_keys", "api_keys_env"),
        ("ports", "port"),
        ("priorty", None),
        ("hello", None),
        ("x", None),
    ],
)
def test_near_names(name: str, near: str | None) -> None:
    assert nearest(name, ["host", "port", "api_keys_env"]) == near


def test_likeness_alone_is_not_nearness() -> None:
    assert nearest("port", ["priority"]) is None
    assert nearest("fallbacks", ["aliases"]) is None


# --- unknown keys ------------------------------------------------------------------


@given(st.sampled_from(sorted(ServerConfig.model_fields)), st.data())
def test_a_key_with_one_slip_is_recognised(key: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(key) - 1))
    slip = key[:at] + key[at + 1 :]
    if slip not in ServerConfig.model_fields:
        assert "did you mean '" in unknown_key(slip, ServerConfig)


@given(
    st.lists(st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Zs")), min_size=1), min_size=1)
)
def test_paths_are_spelt_as_toml_spells_them(keys: list[str]) -> None:
    document: object = tomllib.loads(f"{dotted(tuple(keys))} = 1")
    for key in keys:
        assert isinstance(document, dict)
        document = document[key]
    assert document == 1


def test_the_place_in_a_list_is_shown() -> None:
    assert dotted(("bindings", 0, "match")) == "bindings[0].match"


# --- URLs, paths, headers ------------------------------------------------------------


@given(st.one_of(st.text(), st.text().map("http://".__add__)))
def test_any_url_has_an_answer_and_good_ones_an_endpoint(text: str) -> None:
    if check_url(text) is None:
        host, port = endpoint(text)
        assert host
        assert 0 < port < 65536


def test_endpoints_have_the_schemes_port() -> None:
    assert endpoint("https://a/v1") == ("a", 443)
    assert endpoint("http://[::1]:9/v1") == ("::1", 9)


def test_state_directories() -> None:
    home = Path("/h")
    assert default_state_dir({}, platform="linux", home=home) == Path("/h/.local/state/slotd")
    assert default_state_dir({"XDG_STATE_HOME": "/s"}, platform="linux", home=home) == Path("/s/slotd")
    assert default_state_dir({"XDG_STATE_HOME": "s"}, platform="linux", home=home) == Path(
        "/h/.local/state/slotd"
    )
    mac = Path("/h/Library/Application Support/slotd")
    assert default_state_dir({"XDG_STATE_HOME": "/s"}, platform="darwin", home=home) == mac
    assert default_state_dir({"LOCALAPPDATA": "/l"}, platform="win32", home=home) == Path("/l/slotd")
    assert default_state_dir({}, platform="win32", home=home) == Path("/h/AppData/Local/slotd")


def test_headers_that_show_a_key() -> None:
    key = SecretStr("k")
    assert auth_header("bearer", key) == ("Authorization", "Bearer k")
    assert auth_header("x-api-key", key) == ("x-api-key", "k")
    assert auth_header("header:X-Lab", key) == ("X-Lab", "k")
    assert auth_header("none", key) is None
    assert auth_header("bearer", None) is None
