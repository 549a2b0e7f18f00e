"""What differs between two configurations: complete, readable, and without secrets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from config_reader import parse
from hypothesis import given
from hypothesis import strategies as st

from slotd.config import ConfigFile, LoadedConfig
from slotd.config.diff import MAX_SECTIONS, ConfigDiff, diff, kept
from slotd.config.effect import AT_RESTART
from slotd.config.model import Config
from slotd.config.reread import reread
from slotd.config.shown import MAX_CHARS, shown
from slotd.errors import ConfigInvalid

BASE = """
[server]
port = 8080
[models.small]
source = "file:small.gguf"
[models.big]
source = "file:big.gguf"
[slots.chat]
type = "llm"
engine = "llama-cpp"
model = "small"
default = true
[slots.embed]
type = "embedding"
engine = "command"
command = ["serve", "--port", "{port}"]
[upstreams.lab]
url = "http://lab.internal:8000/v1"
auth = "bearer"
key_env = "LAB_KEY"
[[bindings]]
match = "a*"
slot = "chat"
[[bindings]]
match = "b*"
upstream = "lab"
"""


def between(old: str, new: str, old_env: dict[str, str] | None = None, **new_env: str) -> ConfigDiff:
    return diff(parse(old, old_env or {}), parse(new, new_env))


def with_text(old: str, new: str) -> str:
    assert BASE.count(old) == 1, old
    return BASE.replace(old, new)


def change(old: str, new: str) -> tuple[str, ...]:
    """The lines for a change of the base text."""
    return between(BASE, with_text(old, new)).lines()


def test_equal_configurations_do_not_differ() -> None:
    found = between(BASE, BASE)
    assert not found
    assert found.lines() == ()
    assert found.as_dict()["changed"] is False


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("port = 8080", "port = 9090", ["~ server.port: 8080 -> 9090  (when slotd is started again)"]),
        ("port = 8080", "port = 8080\nlog_level = 'debug'", ['~ server.log_level: "info" -> "debug"']),
        ("default = true", "", ["~ slots.chat.default: true -> false"]),
        ("default = true", "default = true\nmax_queue = 3", ["~ slots.chat.max_queue: 64 -> 3"]),
        (
            "default = true",
            "default = true\noptions = { ctx_size = 8192 }",
            ["~ slots.chat.options.ctx_size: 4096 -> 8192  (its engine is loaded again)"],
        ),
        (
            "default = true",
            "default = true\nmax_parallel = 8",
            ["~ slots.chat.max_parallel: 4 -> 8  (its engine is loaded again)"],
        ),
        (
            "file:small.gguf",
            "file:tiny.gguf",
            ['~ models.small.source: "file:small.gguf" -> "file:tiny.gguf"  (its engine is loaded again)'],
        ),
        (
            '[[bindings]]\nmatch = "a*"\nslot = "chat"\n',
            '[[bindings]]\nmatch = "c*"\nslot = "embed"\n',
            ['- bindings[0]: match = "a*", slot = "chat"', '+ bindings[0]: match = "c*", slot = "embed"'],
        ),
        (
            '["serve", "--port", "{port}"]',
            '["serve", "{port}"]',
            [
                '~ slots.embed.command: ["serve", "--port", "{port}"] -> ["serve", "{port}"]'
                "  (its engine is loaded again)"
            ],
        ),
    ],
)
def test_a_change_in_words(old: str, new: str, lines: list[str]) -> None:
    assert list(change(old, new)) == lines


def test_max_parallel_is_live_where_the_engine_does_not_follow_it() -> None:
    command = '["serve", "--port", "{port}"]'
    assert change(command, f"{command}\nmax_parallel = 9") == ("~ slots.embed.max_parallel: 4 -> 9",)
    fixed = with_text("default = true", "options = { parallel = 2 }")
    more = fixed.replace("options =", "max_parallel = 9\noptions =")
    assert between(fixed, more).lines() == ("~ slots.chat.max_parallel: 4 -> 9",)


def test_sections_that_come_and_go() -> None:
    new = BASE.replace('[slots.embed]\ntype = "embedding"', '[slots."e.2"]\ntype = "embedding"')
    found = between(BASE, new)
    assert found.slots("added") == ("e.2",)
    assert found.slots("removed") == ("embed",)
    assert found.lines() == (
        "- slots.embed",
        '+ slots."e.2": type = "embedding", engine = "command", command = ["serve", "--port", "{port}"]',
    )


def test_a_models_file_relaunches_the_slots_that_use_it() -> None:
    found = between(BASE, with_text("file:small.gguf", "file:tiny.gguf"))
    assert found.relaunched == ("chat",)
    assert not between(BASE, with_text("file:big.gguf", "file:huge.gguf")).relaunched
    labels = between(BASE, with_text('"file:small.gguf"', '"file:small.gguf"\nlabels = ["vision"]'))
    assert labels
    assert not labels.relaunched


def test_the_order_of_slots_and_upstreams_counts() -> None:
    two = BASE + '[upstreams.den]\nurl = "http://den.internal/v1"\n'
    swapped = BASE.replace(
        "[upstreams.lab]", '[upstreams.den]\nurl = "http://den.internal/v1"\n[upstreams.lab]'
    )
    assert between(two, swapped).lines() == ('~ upstreams.order: ["lab", "den"] -> ["den", "lab"]',)


# --- secrets -------------------------------------------------------------------------------


def test_keys_are_only_ever_changed() -> None:
    old = {"SLOTD_API_KEYS": "alpha-secret", "LAB_KEY": "lab-secret"}
    found = between(BASE, BASE, old, SLOTD_API_KEYS="beta-secret", LAB_KEY="other-secret")
    assert found.lines() == ("~ server.api keys: changed", "~ upstreams.lab.key: changed")
    told = json.dumps(found.as_dict())
    assert 'secret": true' in told
    for secret in ("alpha", "beta", "lab-secret", "other"):
        assert secret not in told


def test_the_order_of_keys_does_not_count() -> None:
    assert not between(BASE, BASE, {"SLOTD_API_KEYS": "a,b"}, SLOTD_API_KEYS="b,a")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('command = ["serve", "{port}"]', 'command = ["serve", "{port}"]\nenv = { HF_TOKEN = "sesame" }'),
        ('command = ["serve", "{port}"]', 'command = ["serve", "{port}", "--api-key", "sesame"]'),
        ('command = ["serve", "{port}"]', 'command = ["serve", "{port}", "--auth-token=sesame"]'),
        ('command = ["serve", "{port}"]', 'command = ["serve", "{port}", "https://x.org/?k=sesame"]'),
    ],
)
def test_what_an_engine_is_given_may_be_secret(old: str, new: str) -> None:
    head = '[slots.a]\ntype = "llm"\nengine = "command"\n'
    for pair in ((head + old, head + new), (head + new, head + old), ("", head + new), (head + new, "")):
        found = between(*pair)
        assert found
        assert "sesame" not in json.dumps(found.as_dict())
        assert "sesame" not in repr(found)


@pytest.mark.parametrize(
    "args",
    [
        ["--api-key", "sesame"],
        ["--api-key=12345678"],
        ["--token", "12345678"],
        ["--hf-token", "sesame"],
        ["--auth-token", "--sesame"],
        ["--tokens", "sesame"],
        ["--hfToken", "sesame"],
        ["--OPENAI_API_KEY=sesame"],
        ["DB_SECRET=sesame"],
        ["--db-password", "open sesame"],
        ["--dbpassword", "sesame"],
        ["--max-tokens-key", "sesame"],
        ["--header", "Authorization: Bearer sesame"],
        ["-H", "X-Api-Key: sesame"],
        ["sh", "-c", "HF_TOKEN=sesame exec serve --port 1"],
        ["sh", "-c", "serve --password open sesame --port 1"],
        ['{"token":"sesame"}'],
        ["https://me:sesame@x.org/"],
        ["https://x.org/?k=sesame"],
        ["--anything", "sk-sesame-sesame-sesame-sesame"],
    ],
)
def test_what_sounds_like_a_secret_is_masked(args: list[str]) -> None:
    text = str(shown(args))
    assert "***" in text
    assert "sesame" not in text
    assert "12345678" not in text


@pytest.mark.parametrize(
    "args",
    [
        ["--max-tokens", "5"],
        ["--max-tokens=5"],
        ["--max-num-batched-tokens", "8192"],
        ["--tokens", "5"],
        ["--token-limit", "8k"],
        ["--stop-token-id", "2"],
        ["--tokenizer", "org/model"],
        ["--tokenizer-mode", "auto"],
        ["--skip-tokenizer-init"],
        ["--author", "me"],
        ["--keyword", "x"],
        ["--keep", "5"],
        ["sh", "-c", "exec serve --port 1 --tokenizer x"],
        ["http://127.0.0.1:80/v1"],
    ],
)
def test_what_only_looks_a_little_like_a_secret_is_shown(args: list[str]) -> None:
    assert shown(args) == json.dumps(args)


@given(st.lists(st.text(max_size=12), max_size=8))
def test_arguments_of_any_kind_can_be_shown(args: list[str]) -> None:
    assert isinstance(shown(args), str)


@given(
    st.sampled_from(["--token", "--hf-token", "--auth-token", "--api-key", "--password"]), st.text(min_size=1)
)
def test_nothing_that_follows_a_secret_s_name_is_shown(name: str, value: str) -> None:
    assert shown(["serve", name, value]) == json.dumps(["serve", name, "***"])
    assert shown(["serve", f"{name}={value}"]) == json.dumps(["serve", f"{name}=***"])


def test_a_long_command_is_shown_to_its_end() -> None:
    head = '[slots.a]\ntype = "llm"\nengine = "command"\ncommand = ["serve", "{port}", %s]\n'
    many = ", ".join(f'"--option-number-{n}", "{n}"' for n in range(15))
    (line,) = between(head % many, head % (many + ', "--last", "x"')).lines()
    assert '"--last", "x"]' in line
    (line,) = between("", head % many).lines()
    assert '"14"]' in line


def test_two_secrets_that_look_the_same_are_changed() -> None:
    head = '[slots.a]\ntype = "llm"\nengine = "command"\ncommand = ["serve", "{port}", "--api-key", "%s"]\n'
    line = "~ slots.a.command: changed  (its engine is loaded again)"
    assert between(head % "sesame", head % "abracadabra").lines() == (line,)


# --- bounds -----------------------------------------------------------------------------------


def test_a_huge_diff_is_bounded() -> None:
    slots = "".join(
        f'[slots.s{i}]\ntype = "llm"\nengine = "command"\ncommand = ["{{port}}", "{"x" * 500}"]\n'
        for i in range(MAX_SECTIONS + 50)
    )
    found = between("", slots)
    assert len(found.sections) == MAX_SECTIONS + 50
    assert found.lines()[-1] == "... and 50 more sections"
    assert found.as_dict()["sections_left_out"] == 50
    assert len(json.dumps(found.as_dict())) < 500 * MAX_SECTIONS * 3


@given(st.recursive(st.text() | st.integers() | st.booleans() | st.none(), st.lists, max_leaves=20))
def test_a_shown_value_is_short_and_one_line(value: Any) -> None:
    text = shown(value)
    if isinstance(text, str):
        assert len(text) <= MAX_CHARS
        assert text.isprintable()


# --- of any two ------------------------------------------------------------------------------

_slot = st.fixed_dictionaries(
    {"type": st.sampled_from(["llm", "tts"]), "engine": st.just("command"), "command": st.just(["{port}"])},
    optional={
        "max_queue": st.integers(0, 3),
        "priority": st.integers(0, 2),
        "labels": st.lists(st.sampled_from("xyz"), max_size=2),
        "env": st.dictionaries(st.sampled_from("AB"), st.sampled_from("12"), max_size=2),
    },
)
_server = st.fixed_dictionaries(
    {},
    optional={"port": st.integers(1, 3), "max_body_mb": st.integers(1, 2), "event_buffer": st.integers(1, 2)},
)
_bindings = st.lists(st.fixed_dictionaries({"match": st.sampled_from("abc")}), max_size=3)


@st.composite
def configs(draw: st.DrawFn) -> LoadedConfig:
    slots = draw(st.dictionaries(st.sampled_from(["one", "two", "six"]), _slot, max_size=3))
    sections: list[tuple[str, dict[str, Any]]] = [("[server]", draw(_server))]
    sections += [(f"[slots.{name}]", slot) for name, slot in slots.items()]
    if slots:
        target = draw(st.sampled_from(sorted(slots)))
        sections += [("[[bindings]]", {**b, "slot": target}) for b in draw(_bindings)]
    return parse("".join(f"{title}\n{_written(table)}" for title, table in sections))


def _written(table: dict[str, Any], prefix: str = "") -> str:
    """The keys of a table as TOML, which writes such lists and strings as JSON does."""
    lines = [
        _written(value, f"{key}.") if isinstance(value, dict) else f"{prefix}{key} = {json.dumps(value)}\n"
        for key, value in table.items()
    ]
    return "".join(lines)


@given(configs(), configs())
def test_there_is_a_diff_exactly_if_they_differ(old: LoadedConfig, new: LoadedConfig) -> None:
    orders = [list(c.config.slots) for c in (old, new)]
    same = old.config == new.config and orders[0] == orders[1]
    assert bool(diff(old, new)) is not same
    assert not diff(old, old)


@given(configs(), configs())
def test_the_way_back_has_the_same_changes(old: LoadedConfig, new: LoadedConfig) -> None:
    there, back = diff(old, new), diff(new, old)
    assert set(there.slots("added")) == set(back.slots("removed"))
    assert set(there.slots("changed")) == set(back.slots("changed"))

    def changed(found: ConfigDiff) -> set[Any]:
        return {(s.name, k.key) for s in found.sections if s.kind == "changed" for k in s.keys}

    assert changed(there) == changed(back)


@given(configs(), configs())
def test_putting_back_what_is_kept_leaves_nothing_for_a_restart(old: LoadedConfig, new: LoadedConfig) -> None:
    keep = kept(old.config, new.config)
    assert bool(keep) == bool(diff(old, new).needs_restart())
    assert kept(old.config, Config.model_construct(**_sections(new.config, keep))) == {}


def _sections(config: Config, keep: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The sections of a configuration with some keys replaced."""
    return {
        title: getattr(config, title).model_copy(update=keep.get(title, {}))
        if title in AT_RESTART
        else getattr(config, title)
        for title in Config.model_fields
    }


def test_keys_that_need_a_restart_exist() -> None:
    for section, keys in AT_RESTART.items():
        model = type(getattr(Config(), section))
        assert keys <= set(model.model_fields), section


# --- read again ------------------------------------------------------------------------------


def reader(tmp_path: Any, text: str, **env: str) -> ConfigFile:
    path = tmp_path / "slotd.toml"
    path.write_text(text)
    return ConfigFile(path, env={"HOME": str(tmp_path), **env})


def test_what_needs_a_restart_is_told_and_left(tmp_path: Any) -> None:
    old = reader(tmp_path, "[server]\nport = 1\nmax_body_mb = 1\n").load()
    reading = reread(reader(tmp_path, "[server]\nport = 2\nmax_body_mb = 2\nstate_dir = 'x'\n"), old)
    assert reading.diff.needs_restart() == ("server.port", "server.state_dir")
    assert (reading.loaded.config.server.port, reading.loaded.config.server.max_body_mb) == (1, 2)
    assert reading.loaded.state_dir == old.state_dir


def test_a_port_from_the_command_line_stays(tmp_path: Any) -> None:
    file = reader(tmp_path, "[server]\nport = 1\n")
    file = ConfigFile(file.path, file.env, {"server": {"port": 7}})
    old = file.load()
    assert old.config.server.port == 7
    (tmp_path / "slotd.toml").write_text("[server]\nport = 2\n")
    assert not reread(file, old).diff


def test_a_mixture_that_would_open_the_door_is_refused(tmp_path: Any) -> None:
    """Without keys and on a private address all is well; but slotd still listens on the public one."""
    file = reader(tmp_path, '[server]\nhost = "0.0.0.0"\n', SLOTD_API_KEYS="secret-a")
    old = file.load()
    with pytest.raises(ConfigInvalid) as caught:
        reread(reader(tmp_path, "[server]\n"), old)
    text = "\n".join(caught.value.problems)
    assert "can be reached from other machines" in text
    assert "slotd keeps server.host = '0.0.0.0'" in text
