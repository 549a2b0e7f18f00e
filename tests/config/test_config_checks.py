"""What must hold between the parts of a configuration, one rule at a time."""

from __future__ import annotations

import pytest
from config_reader import parse, problems

from slotd.config import checks
from slotd.config.problems import Report

BASE = """
[models.m]
source = "https://example.org/m.gguf"
[models.n]
source = "https://example.org/n.gguf"
[slots.chat]
type = "llm"
engine = "llama-cpp"
model = "m"
[upstreams.lab]
url = "http://lab:8080/v1"
"""

COMMAND = '[slots.c]\ntype = "tts"\nengine = "command"\ncommand = ["run", "{port}"]\n'
EXTERNAL = '[slots.e]\ntype = "llm"\nengine = "external"\nurl = "http://far:1/v1"\n'


def in_chat(line: str) -> str:
    return BASE.replace('model = "m"\n', f'model = "m"\n{line}\n')


def bound(line: str) -> str:
    return f'{BASE}[[bindings]]\nmatch = "x*"\n{line}\n'


@pytest.mark.parametrize(
    "text",
    [
        BASE,
        in_chat('aliases = ["gpt-4o-mini", "m", "org/name:7b"]'),
        BASE + '[slots.m]\ntype = "embedding"\nengine = "llama-cpp"\nmodel = "m"\n',
        in_chat("options = { batch_size = 64 }"),
        in_chat("options = { batch_size = 64 }").replace('"llm"', '"reranking"'),
        in_chat("options = { batch_size = 64, ubatch_size = 64 }").replace('"llm"', '"embedding"'),
        BASE + COMMAND,
        BASE + EXTERNAL,
        in_chat('fallbacks = ["e"]') + EXTERNAL + 'fallbacks = ["chat"]\n',
        bound('slot = "chat"'),
        bound('upstream = "lab"\nmodel = "there"'),
        COMMAND + 'env = { JSON = \'{"a": 1, "b": {"porte": 2}}\', SH = "${prt}" }\n',
        '[models.l]\nsource = "http://127.0.0.1:9/l.gguf"\n',
        "[server]\nport = 0\n",
    ],
)
def test_sound(text: str) -> None:
    assert parse(text).warnings == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        # fallbacks
        (in_chat('fallbacks = ["chat"]'), "slots.chat.fallbacks[0]: a slot cannot stand in for itself"),
        (in_chat('fallbacks = ["e", "e"]') + EXTERNAL, "slots.chat.fallbacks[1]: 'e' is given twice"),
        (
            in_chat('fallbacks = ["c"]') + COMMAND,
            "slots.chat.fallbacks[0]: 'c' is a slot for 'tts', not for 'llm'",
        ),
        (
            in_chat('fallbacks = ["ee"]') + EXTERNAL,
            "slots.chat.fallbacks[0]: no slot 'ee'; did you mean 'e'?",
        ),
        # names
        (
            BASE + '[slots."a b"]\ntype = "llm"\nengine = "external"\nurl = "http://x"\n',
            "slots.\"a b\": a name is 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit",
        ),
        (
            BASE + '[models."m*"]\nsource = "https://x/m"\n',
            "models.\"m*\": 'm*' looks like a glob; globs belong in [[bindings]]",
        ),
        (
            BASE + '[upstreams.chat]\nurl = "http://x"\n',
            "upstreams.chat: a slot has this name too; routes and errors could not tell them apart",
        ),
        (
            BASE + '[slots.n]\ntype = "llm"\nengine = "llama-cpp"\nmodel = "m"\n',
            "slots.n: is also the id of a model that this slot does not serve (it serves 'm')",
        ),
        # aliases
        (in_chat('aliases = ["chat"]'), "slots.chat.aliases[0]: 'chat' is the slot's own name"),
        (in_chat('aliases = ["a", "a"]'), "slots.chat.aliases[1]: 'a' is given twice"),
        (
            in_chat('aliases = ["n"]'),
            "slots.chat.aliases[0]: 'n' is the id of a model that this slot does not serve (it serves 'm')",
        ),
        (
            in_chat('aliases = ["gpt*"]'),
            "slots.chat.aliases[0]: 'gpt*' looks like a glob; globs belong in [[bindings]]",
        ),
        (
            in_chat('aliases = ["slotd/chat"]'),
            "slots.chat.aliases[0]: 'slotd/chat': names that begin with 'slotd/' "
            "always mean the slot of that name",
        ),
        (in_chat('aliases = [""]'), "slots.chat.aliases[0]: must not be empty"),
        # engines
        (
            BASE.replace('model = "m"\n', ""),
            "slots.chat.model: missing; engine 'llama-cpp' needs it",
        ),
        (
            BASE.replace('"llm"', '"tts"'),
            "slots.chat.type: engine 'llama-cpp' cannot serve 'tts', only llm, embedding, reranking",
        ),
        (COMMAND.replace('["run", "{port}"]', "[]"), "slots.c.command: missing; engine 'command' needs it"),
        (EXTERNAL.replace("http://far:1/v1", ""), "slots.e.url: missing; engine 'external' needs it"),
        (in_chat('url = "http://x"'), "slots.chat.url: has no effect with engine 'llama-cpp'"),
        (EXTERNAL + "pinned = true\n", "slots.e.pinned: has no effect with engine 'external'"),
        (COMMAND + "options = { a = 1 }\n", "slots.c.options.a: unknown key; this engine takes no options"),
        (in_chat("options = 3"), "slots.chat.options: must be a table, not the number 3"),
        (
            in_chat("ctx_size = 3"),
            "slots.chat.ctx_size: unknown key; it belongs in the slot's own table 'options'",
        ),
        (
            in_chat('engine = "lama"').replace('engine = "llama-cpp"\n', ""),
            "slots.chat.engine: unknown 'lama'; did you mean 'llama-cpp'?",
        ),
        (
            in_chat("options = { batch_size = 64, ubatch_size = 512 }"),
            "slots.chat.options.ubatch_size: must be at most batch_size (64), not 512",
        ),
        (
            in_chat("options = { gpu_layers = -2 }"),
            "slots.chat.options.gpu_layers: must be at least -1, not -2",
        ),
        (
            in_chat("options = { pooling = 'xyz' }"),
            'slots.chat.options.pooling: unknown \'xyz\'; must be "", "mean", "cls", "last" or "rank"',
        ),
        (COMMAND + "env = { A = 2 }\n", 'slots.c.env.A: must be a string, not the number 2; write "2"'),
        (
            COMMAND + 'env = { P = "{model_pth}" }\n',
            "slots.c.env.P: unknown placeholder {model_pth}; did you mean {model_path}?",
        ),
        (
            COMMAND.replace('"run"', '"{model_path}"'),
            "slots.c.model: missing; the command asks for {model_path}",
        ),
        (COMMAND + 'health_path = "health"\n', "slots.c.health_path: must be a path that begins with '/'"),
        (
            EXTERNAL + "port = 1\n",
            "slots.e.port: unknown key; known are: type, engine, model, default, aliases, labels, "
            "system_prompt, request, variants, autoload, pinned, priority, ...",
        ),
        # numbers
        (in_chat("max_parallel = 0"), "slots.chat.max_parallel: must be at least 1, not 0"),
        (in_chat("ready_timeout_s = 0"), "slots.chat.ready_timeout_s: must be more than 0, not 0"),
        (in_chat("ttl_s = inf"), "slots.chat.ttl_s: must be a finite number, not inf"),
        (in_chat("max_queue = true"), "slots.chat.max_queue: must be a whole number, not true"),
        (in_chat("pinned = 1"), "slots.chat.pinned: must be true or false, not the number 1"),
        (in_chat('aliases = "x"'), "slots.chat.aliases: must be a list, not a string"),
        (
            in_chat("model = 2024-01-01").replace('model = "m"\n', ""),
            "slots.chat.model: must be a string, not a date or time",
        ),
        (
            in_chat("memory_mb = 9000") + "[memory]\nbudget_mb = 8000\n",
            "slots.chat.memory_mb: 9000 is more than memory.budget_mb (8000): the slot could never load",
        ),
        ("[dispatcher]\nbackoff_s = 400\n", "dispatcher.backoff_max_s: must be at least backoff_s (400)"),
        # ports
        ("[server]\nport = 70000\n", "server.port: must be at most 65535, not 70000"),
        (
            "[process]\nport_first = 22000\n",
            "process.port_last: must be at least port_first (22000), not 21999",
        ),
        (
            BASE + COMMAND + "[process]\nport_last = 21000\n",
            "process.port_last: 2 slots need a port each, and 21000 to 21000 are too few",
        ),
        (
            "[server]\nport = 21000\n",
            "server.port: lies in the engines' own range, process.port_first to port_last (21000 to 21999)",
        ),
        # hosts and URLs
        (
            "[server]\nhost = ''\n",
            'server.host: is empty; write "127.0.0.1", or "0.0.0.0" for every address of this machine',
        ),
        (
            "[server]\nhost = 'a:80'\n",
            "server.host: must be a host name or an address; the port has its own key",
        ),
        ("[server]\nhost = 'http://a'\n", "server.host: must be a host name or an address, nothing more"),
        (
            "[server]\ncors_origins = ['x']\n",
            'server.cors_origins[0]: must be an origin such as "http://localhost:3000", or "*"',
        ),
        ('[upstreams.u]\nurl = ""\n', "upstreams.u.url: must begin with http:// or https://"),
        ('[upstreams.u]\nurl = "lab:80/v1"\n', "upstreams.u.url: must begin with http:// or https://"),
        ('[upstreams.u]\nurl = "http://:80"\n', "upstreams.u.url: names no host"),
        (
            '[upstreams.u]\nurl = "http://a:99999"\n',
            "upstreams.u.url: is not a URL: its host or port cannot be read",
        ),
        ('[upstreams.u]\nurl = "http://a/?k=v"\n', "upstreams.u.url: must not hold a query ('?')"),
        (
            '[upstreams.u]\nurl = "http://localhost:8080/v1"\n',
            "upstreams.u.url: is slotd's own address (server.port is 8080)",
        ),
        (
            EXTERNAL.replace("far:1", "127.0.0.1:8080"),
            "slots.e.url: is slotd's own address (server.port is 8080)",
        ),
        # keys
        (EXTERNAL + 'auth = "bearer"\n', 'slots.e.key_env: missing; auth = "bearer" needs a key'),
        (
            '[upstreams.u]\nurl = "http://a"\nkey_env = "K"\n',
            'upstreams.u.auth: is "none", so the key would not be sent; write auth = "bearer" or another',
        ),
        (
            '[upstreams.u]\nurl = "http://a"\nauth = "header:a b"\n',
            'upstreams.u.auth: must be "none", "bearer", "x-api-key" or "header:<Name>"',
        ),
        # models
        (
            BASE + '[models.o]\nsource = "file:x.gguf"\nsha256 = "ag"\n',
            "models.o.sha256: sha256 must be 64 hexadecimal digits, not 'ag'",
        ),
        # bindings
        (bound(""), 'bindings[0]: names no target; give slot = "..." or upstream = "..."'),
        (
            bound('slot = "chat"\nupstream = "lab"'),
            "bindings[0]: names both a slot and an upstream; keep one",
        ),
        (bound('slot = "chta"'), "bindings[0].slot: no slot 'chta'; did you mean 'chat'?"),
        (bound('upstream = "zzz"'), "bindings[0].upstream: no upstream 'zzz'; there are: lab"),
        (bound('slot = "lab"'), "bindings[0].slot: 'lab' is an upstream; use that key"),
        (bound('upstream = "chat"'), "bindings[0].upstream: 'chat' is a slot; use that key"),
        ('[[bindings]]\nmatch = "x"\nslot = "a"\n', "bindings[0].slot: no slot 'a'; none is configured"),
        (bound('slot = "chat"').replace("x*", ""), "bindings[0].match: must not be empty"),
    ],
)
def test_fault(text: str, problem: str) -> None:
    assert problems(text) == [problem]


def test_a_dotted_name_without_quotes_is_explained() -> None:
    assert problems('[models.qwen2.5]\nsource = "file:x.gguf"') == [
        "models.qwen2.source: missing",
        "models.qwen2.5: unknown key; if this is part of a name with a dot, put the name in quotes",
    ]


def test_two_defaults_of_one_type() -> None:
    slot = '[slots.{}]\ntype = "{}"\nengine = "external"\nurl = "http://far:1"\ndefault = true\n'
    text = slot.format("a", "llm") + slot.format("b", "tts") + slot.format("c", "llm")
    assert problems(text) == ["slots.c.default: slot 'a' is already the default for 'llm'"]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            bound('slot = "chat"') + '[[bindings]]\nmatch = "x*"\nupstream = "lab"\n',
            "bindings[1]: is never reached: bindings[0] takes all that matches 'x*'",
        ),
        (
            bound('slot = "chat"').replace("x*", "*") + '[[bindings]]\nmatch = "y"\nupstream = "lab"\n',
            "bindings[1]: is never reached: bindings[0] takes all that matches 'y'",
        ),
        (
            COMMAND.replace("{port}", "8000"),
            "slots.c.command: {port} is nowhere in it: the engine must learn the port in another way",
        ),
        *(
            (
                in_chat(f"options = {{ batch_size = 64, ubatch_size = {ubatch} }}").replace(
                    '"llm"', '"reranking"'
                ),
                "slots.chat.options.ubatch_size: has no effect: "
                "reranking reads an input at once, batch_size (64) of it",
            )
            for ubatch in (32, 512)
        ),
        (
            in_chat('request = { system = "first" }'),
            "slots.chat.request.system: has no effect: the slot has no system_prompt",
        ),
    ],
)
def test_warning(text: str, warning: str) -> None:
    assert parse(text).warnings == (warning,)


def test_an_offline_upstream_passes_on_to_the_next_binding() -> None:
    text = bound('upstream = "lab"') + '[[bindings]]\nmatch = "x*"\nslot = "chat"\n'
    assert parse(text).warnings == ()


def test_nothing_is_said_twice() -> None:
    report = Report()
    for _ in range(2):
        report.fault(("server", "port"), "must be a number")
        report.warn(("server", "host"), "is odd")
    report.fault(("server", "host"), "must be a number")
    assert [str(p) for p in report.problems] == [
        "server.port: must be a number",
        "server.host: must be a number",
    ]
    assert len(report.warnings) == 1


def test_names_are_compared_only_where_one_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison takes a tenth of a millisecond, and there may be a thousand slots."""
    asked: list[str] = []
    monkeypatch.setattr(checks, "nearest", lambda name, known: asked.append(name))
    parse(
        '[slots.c]\ntype = "llm"\nengine = "command"\n'
        'command = ["x", "{port}", "{host}", "{model}", "{size}"]\nenv = { P = "{model}" }'
    )
    assert asked == ["size"]


def test_a_thing_is_reported_once_and_in_the_order_found() -> None:
    report = Report()
    for text in ("b", "a", "b"):
        report.fault(("server",), text)
        report.warn(("server",), text)
    assert [p.text for p in report.problems] == [p.text for p in report.warnings] == ["b", "a"]
