"""The index of globs finds what trying one after another would find, and tries few."""

from __future__ import annotations

import re
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slotd.config.globs import glob_matches
from slotd.dispatch import globs
from slotd.dispatch.globs import GlobIndex

# Few letters, so that names are hit often; with all that a glob knows, and what a regex would.
GLOBS = st.text("ab/.*?[]!-^\n", max_size=8)
NAMES = st.text("ab/.*?[]!-^\n", max_size=8)


@given(st.lists(GLOBS, max_size=12), st.lists(NAMES, max_size=6))
@example(["a*a"], ["a", "aa", "aba"])
@example(["*", "", "a", "*", "a"], ["a", ""])
@example(["[", "a[b", "[]]", "[!]]a", "[]", "]a", "a]*"], ["[", "a[b", "]", "ba", "[]", "]a", "a]"])
@example(["a**b", "*ab*ba*", "*a*a"], ["ab", "aba", "abba", "a", "aa"])
@example(["*]", "a*]b"], ["]?", "a]", "a]]b"])
@example(["[a*]b", "?[*"], ["ab", "*b", "b[", "b[a"])
def test_it_finds_what_a_scan_in_declared_order_finds(patterns: list[str], names: list[str]) -> None:
    index = GlobIndex(patterns)
    # Names that are patterns too: those without wildcards are hit, the others not always.
    for name in [*names, *patterns]:
        assert index.matching(name) == [at for at, p in enumerate(patterns) if glob_matches(p, name)]


@given(st.lists(GLOBS, max_size=12))
def test_the_exact_ones_are_those_without_a_wildcard(patterns: list[str]) -> None:
    wanted = [p for p in patterns if not re.search(r"[*?\[]", p)]
    assert list(GlobIndex(patterns).exact()) == list(dict.fromkeys(wanted))


@pytest.mark.parametrize("form", ["family-{}-*", "*-family-{}", "a-*-{}", "{}-[ab]", "{}-?b"])
def test_of_thousands_those_are_tried_whose_ends_fit(form: str) -> None:
    index = GlobIndex([form.format(f"{i:04}") for i in range(5_000)])
    name = form.format("0417").replace("*", "x").replace("[ab]", "a").replace("?", "x")
    matches = globs._Glob.matches
    tried = []

    def counted(self: globs._Glob, name: str) -> bool:
        tried.append(self.at)
        return matches(self, name)

    with patch.object(globs._Glob, "matches", counted):
        assert index.matching(name) == [417]
        assert index.matching("nobody-has-this") == []
    assert tried == [417]


def test_no_regex_is_compiled_before_it_is_needed() -> None:
    with patch("re.compile", side_effect=AssertionError):
        index = GlobIndex(["a-?", "b-[cd]", "e-*", "*f*"])
        assert index.matching("e-1") == [2]
        assert index.matching("xfx") == [3]
    assert index.matching("a-1") == [0]
