"""Hosts one real llama.cpp server for tests: ``llama_worker.py MODEL KIND``.

Prints its address when it listens, and ends with its standard input. KIND is
``chat`` (a ChatML template with tools and reasoning, so that the parser of the
engine has something to do) or ``tight`` (so little context, shared by two
slots, that generation fails midway).
"""

from __future__ import annotations

import sys

from xllamacpp import CommonParams, Server

TEMPLATE = """\
{%- if tools %}<|im_start|>system
You may call functions. Tools:
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
For each function call return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content or '' }}
{%- if message.tool_calls %}{% for call in message.tool_calls %}
<tool_call>
{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""  # noqa: E501 (one line of the template is one line of the prompt)


def main(model: str, kind: str) -> None:
    params = CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx, params.n_parallel = (4096, 4) if kind == "chat" else (256, 2)
    params.kv_unified = kind == "tight"
    params.n_threads_http = 16
    params.cpuparams.n_threads = 1  # its threads spin while they wait for each other: bad on a busy machine
    params.cache_ram_mib = 0
    params.cache_prompt = False  # the same request twice must do the same work
    params.use_jinja = True
    params.model_alias = ["demo"]
    params.chat_template = TEMPLATE
    server = Server(params)
    print(server.listening_address, flush=True)  # noqa: T201 (this is how the test learns the address)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
