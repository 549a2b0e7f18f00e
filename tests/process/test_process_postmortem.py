"""Why engines end, in their own words: real logs, shortened, and what slotd makes of them."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slotd.process import postmortem
from slotd.process.plan import ExitStatus
from slotd.process.postmortem import MESSAGE_MAX, Verdict, explain

FAILED = ExitStatus(1)
TERMINAL = {"bad_model", "missing_library", "bad_arguments"}

HEAD = """\
0.00.000.173 I srv          init: initializing ...
0.00.002.765 I cmn  common_param: common_params_print_info: verbosity = 3 (adjust with the `-lv N` CLI arg)
0.00.003.149 I srv          init: loading model
0.00.003.183 I srv    load_model: loading model '/models/m.gguf'
"""
TAIL = """
0.00.004.324 E cmn  common_init_: failed to load model '/models/m.gguf'
0.00.004.326 E srv    load_model: failed to load model, '/models/m.gguf'
0.00.004.328 I srv    operator(): operator(): cleaning up before exit...
0.00.004.597 E srv          init: exiting due to model loading error
slotd.engine.llama_worker: Failed to init server, please check the input params.
"""


def judge(log: str, status: ExitStatus = FAILED, *, oom_killed: bool = False) -> Verdict:
    verdict = explain(status, log.splitlines(), oom_killed=oom_killed)
    assert verdict.terminal == (verdict.reason in TERMINAL)
    return verdict


def llama(*lines: str) -> str:
    """A load of the llama.cpp worker that failed with these lines."""
    return HEAD + "\n".join(lines) + TAIL


# --- what llama.cpp's worker says ----------------------------------------------------

LLAMA = [
    (
        "text instead of a model",
        "bad_model",
        "invalid magic characters: 'hell', expected 'GGUF'",
        llama(
            "0.00.003.666 E gguf_init_from_reader: invalid magic characters: 'hell', expected 'GGUF'",
            "0.00.003.672 E llama_model_load: error loading model: "
            "llama_model_loader: failed to load model from /models/m.gguf",
            "0.00.003.672 E llama_model_load_from_file_impl: failed to load model",
        ),
    ),
    (
        "cut in its head",
        "bad_model",
        "failed to read key-value pairs",
        llama(
            "0.00.004.303 E gguf_init_from_reader: failed to read key-value pairs",
            "0.00.004.311 E llama_model_load: error loading model: "
            "llama_model_loader: failed to load model from /models/m.gguf",
        ),
    ),
    (
        "cut in its tensors; an earlier line has the word memory",
        "bad_model",
        "model is corrupted or incomplete",
        llama(
            "0.00.021.589 E common_fit_params: encountered an error while trying to fit params "
            "to free device memory: failed to load model",
            "0.00.035.995 E llama_model_load: error loading model: tensor 'blk.15.attn_output.weight' "
            "data is not within the file bounds, model is corrupted or incomplete",
        ),
    ),
    (
        "an unknown architecture",
        "bad_model",
        "unknown model architecture: 'llamx'",
        llama("0.00.078.214 E llama_model_load: error loading model: unknown model architecture: 'llamx'"),
    ),
    (
        "a tensor is missing",
        "bad_model",
        "tensor 'blk.3.attn_q.weight' not found",
        llama(
            "0.00.287.655 E llama_model_load: error loading model: check_tensor_dims: "
            "tensor 'blk.3.attn_q.weight' not found"
        ),
    ),
    (
        "no such file",
        "bad_model",
        "failed to open GGUF file '/models/m.gguf' (No such file or directory)",
        llama(
            "0.00.003.810 E gguf_init_from_file: failed to open GGUF file '/models/m.gguf' "
            "(No such file or directory)",
            "0.00.003.820 E llama_model_load: error loading model: "
            "llama_model_loader: failed to load model from /models/m.gguf",
        ),
    ),
    (
        "no such adapter",
        "bad_model",
        "failed to open '/models/lora.gguf'",
        llama(
            "0.00.269.402 E llama_adapter_lora_init: failed to open '/models/lora.gguf': "
            "No such file or directory",
            "0.00.269.448 E cmn  common_init_: failed to load lora adapter '/models/lora.gguf'",
        ),
    ),
    (
        "an absurd context",
        "out_of_memory",
        "insufficient memory (attempted to allocate 439453.12 MB)",
        llama(
            "0.00.597.952 W common_fit_params: failed to fit params to free device memory: was unable to fit "
            "model into system memory by reducing context, abort",
            "0.00.729.595 W llama_context: n_ctx_seq (20000000) > n_ctx_train (8192) -- possible "
            "training context overflow",
            "0.01.168.587 E ggml_aligned_malloc: insufficient memory (attempted to allocate 439453.12 MB)",
            "0.01.168.635 E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size "
            "460800000000",
            "0.01.186.015 E llama_init_from_model: failed to initialize the context: "
            "failed to allocate buffer for kv cache",
            "0.01.186.050 E cmn  common_init_: failed to create context with model '/models/m.gguf'",
        ),
    ),
    (
        "a limit on its address space",
        "out_of_memory",
        "mmap failed: Cannot allocate memory",
        llama("0.00.131.788 E llama_model_load: error loading model: mmap failed: Cannot allocate memory"),
    ),
    (
        "no room on the GPU, with the advice that every failed load gets",
        "out_of_memory",
        "allocating 4480.00 MiB on device 3: cudaMalloc failed: out of memory",
        llama(
            "3.02.199.202 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4480.00 MiB on device 3: "
            "cudaMalloc failed: out of memory",
            "3.02.199.205 E alloc_tensor_range: failed to allocate CUDA3 buffer of size 4697620480",
            "3.02.199.208 E llama_model_load: error loading model: unable to allocate CUDA3 buffer",
            "3.02.519.755 E common_init_from_params: failed to load model '/models/m.gguf', try reducing "
            "--n-gpu-layers if you're running out of VRAM",
        ),
    ),
    (
        "the same advice, and another cause",
        "bad_model",
        "unknown model architecture: 'llamx'",
        llama(
            "0.00.078.214 E llama_model_load: error loading model: unknown model architecture: 'llamx'",
            "0.00.519.755 E common_init_from_params: failed to load model '/models/m.gguf', try reducing "
            "--n-gpu-layers if you're running out of VRAM",
        ),
    ),
    (
        "its port is taken",
        "port_taken",
        "couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 18346",
        """\
0.00.002.229 I cmn  common_param: common_params_print_info: verbosity = 3 (adjust with the `-lv N` CLI arg)
0.00.002.724 E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 18346
0.00.002.725 I srv    operator(): operator(): cleaning up before exit...
0.00.002.762 E srv          init: exiting due to HTTP server error
slotd.engine.llama_worker: Failed to init server, please check the input params.
""",
    ),
    (
        "a template that does not parse",
        "bad_arguments",
        "failed to initialize chat template",
        llama(
            "0.00.442.868 E common_chat_templates_init: error: parser: Parser Error: Expected }} (Got )",
            "...{{ broken...",
            "   ^",
            "0.00.442.887 E common_chat_templates_init: failed to initialize chat template",
            "0.00.442.901 E srv          init: init: chat template parsing error: std::exception",
        ),
    ),
]

# --- what other engines say ------------------------------------------------------------

VLLM_OOM = """\
(APIServer pid=17200) INFO 09-28 15:47:02 [api_server.py:1896] vLLM API server version 0.10.2
(EngineCore_DP0 pid=17374) WARNING 09-28 15:47:20 [topk_topp_sampler.py:69] FlashInfer is not available.
(EngineCore_DP0 pid=17374) ERROR 09-28 15:47:24 [core.py:718] EngineCore failed to start.
(EngineCore_DP0 pid=17374) ERROR 09-28 15:47:24 [core.py:718] Traceback (most recent call last):
(EngineCore_DP0 pid=17374) ERROR 09-28 15:47:24 [core.py:718]   File "/v/core.py", line 709, in run_core
(EngineCore_DP0 pid=17374) ERROR 09-28 15:47:24 [core.py:718]     engine_core = EngineCoreProc(*args)
(EngineCore_DP0 pid=17374) ERROR 09-28 15:47:24 [core.py:718] torch.OutOfMemoryError: CUDA out of memory. \
Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.56 GiB of which 56.88 MiB is free.
(EngineCore_DP0 pid=17374) Process EngineCore_DP0:
(EngineCore_DP0 pid=17374) Traceback (most recent call last):
(EngineCore_DP0 pid=17374)   File "/v/process.py", line 314, in _bootstrap
(EngineCore_DP0 pid=17374)     self.run()
""" + "".join(
    f'(APIServer pid=17200)   File "/v/utils.py", line {n}, in f\n(APIServer pid=17200)     g({n})\n'
    for n in range(60)
)
VLLM_END = """\
(APIServer pid=17200) RuntimeError: Engine core initialization failed. See root cause above. \
Failed core proc(s): {'EngineCore_DP0': 1}
"""
TRACEBACK = 'Traceback (most recent call last):\n  File "server.py", line 1, in <module>\n    main()\n'

OTHERS = [
    ("vllm", "out_of_memory", "torch.OutOfMemoryError: CUDA out of memory. Tried", VLLM_OOM + VLLM_END),
    (
        "vllm wants more than is free",
        "out_of_memory",
        "ValueError: Free memory on device (3.22/4.0 GiB)",
        "(EngineCore_DP0 pid=1) ERROR 09-28 15:47:24 [core.py:718] ValueError: Free memory on device "
        "(3.22/4.0 GiB) on startup is less than desired GPU memory utilization (0.9, 3.6 GiB).\n" + VLLM_END,
    ),
    (
        "vllm, another kind of model",
        "bad_model",
        "Model architectures ['FooForCausalLM'] are not supported for now",
        TRACEBACK + "ValueError: Model architectures ['FooForCausalLM'] are not supported for now.",
    ),
    (
        "whisper.cpp",
        "bad_model",
        "whisper_model_load: invalid model data (bad magic)",
        "whisper_model_load: loading model\nwhisper_model_load: invalid model data (bad magic)\n"
        "whisper_init_with_params_no_state: failed to load model\n"
        "error: failed to initialize whisper context",
    ),
    (
        "whisper.cpp without its file",
        "bad_model",
        "failed to open 'models/ggml-tiny.bin'",
        "whisper_init_from_file_with_params_no_state: loading model from 'models/ggml-tiny.bin'\n"
        "whisper_init_from_file_with_params_no_state: failed to open 'models/ggml-tiny.bin'\n"
        "error: failed to initialize whisper context",
    ),
    (
        "stable-diffusion.cpp",
        "bad_model",
        "get sd version from file failed",
        "[INFO ] stable-diffusion.cpp:196  - loading model from '/models/m.gguf'\n"
        "[ERROR] stable-diffusion.cpp:273  - get sd version from file failed: '/models/m.gguf'\n"
        "new_sd_ctx_t failed",
    ),
    (
        "a broken safetensors file",
        "bad_model",
        "SafetensorError",
        TRACEBACK + "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
    ),
    (
        "a Python program without its weights",
        "bad_model",
        "No such file or directory: '/models/x.safetensors'",
        TRACEBACK + "FileNotFoundError: [Errno 2] No such file or directory: '/models/x.safetensors'",
    ),
    (
        "ld.so",
        "missing_library",
        "libcuda.so.1",
        "./server: error while loading shared libraries: libcuda.so.1: cannot open shared object file: "
        "No such file or directory",
    ),
    (
        "an import",
        "missing_library",
        "No module named 'vllm'",
        TRACEBACK + "ModuleNotFoundError: No module named 'vllm'",
    ),
    ("python -m", "missing_library", "No module named nosuch", "/usr/bin/python: No module named nosuch"),
    ("a shell", "missing_library", "nosuchprogram: not found", "sh: 1: nosuchprogram: not found"),
    (
        "another shell",
        "missing_library",
        "command not found",
        "bash: line 1: nosuchprogram: command not found",
    ),
    (
        "glibc",
        "missing_library",
        "GLIBC_2.38",
        "./server: /lib/libc.so.6: version `GLIBC_2.38' not found (required by ./server)",
    ),
    (
        "argparse",
        "bad_arguments",
        "unrecognized arguments: --prot 1",
        "usage: srv [-h] [--port PORT]\nsrv: error: unrecognized arguments: --prot 1",
    ),
    (
        "argparse misses one",
        "bad_arguments",
        "are required: --port",
        "usage: srv [-h] --port PORT\nsrv: error: the following arguments are required: --port",
    ),
    (
        "argparse cannot read one",
        "bad_arguments",
        "invalid int value: 'x'",
        "usage: srv [-h] [--port PORT]\nsrv: error: argument --port: invalid int value: 'x'",
    ),
    ("getopt", "bad_arguments", "'--nosuch'", "ls: unrecognized option '--nosuch'\nTry 'ls --help'."),
    ("llama-server", "bad_arguments", "--ctxsize", "error: invalid argument: --ctxsize"),
    (
        "llama-server cannot read one",
        "bad_arguments",
        '"--ctx-size"',
        'error while handling argument "--ctx-size": stoi\n\nusage:\n-c, --ctx-size N  size of the context\n',
    ),
    (
        "uvicorn",
        "port_taken",
        "address already in use",
        "INFO:     Application startup complete.\n"
        "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): "
        "address already in use\nINFO:     Waiting for application shutdown.",
    ),
    ("a Python server", "port_taken", "Errno 98", TRACEBACK + "OSError: [Errno 98] Address already in use"),
    ("Python itself", "out_of_memory", "MemoryError", TRACEBACK + "MemoryError"),
    ("CUDA and not memory", "exited", "invalid argument", "RuntimeError: CUDA error: invalid argument"),
    (
        "a socket is no model",
        "exited",
        "/run/x.sock",
        "FileNotFoundError: No such file or directory: '/run/x.sock'",
    ),
    ("no words at all", "exited", "the engine ended by itself, exit code 1", ""),
    ("words without meaning", "exited", "exit code 1: bye", "hello\nbye"),
    ("a last complaint", "exited", "RuntimeError: no GPU", "RuntimeError: no GPU found\nstopping\ndone"),
]


@pytest.mark.parametrize(
    ("reason", "words", "log"), [case[1:] for case in LLAMA + OTHERS], ids=[c[0] for c in LLAMA + OTHERS]
)
def test_the_cause_is_found(reason: str, words: str, log: str) -> None:
    verdict = judge(log)
    assert (verdict.reason, words in verdict.message) == (reason, True), verdict


@pytest.mark.parametrize(
    "words",
    ["unknown flag --ctxsize; did you mean --ctx-size?", "--model FILE is needed", "-np needs a value"],
)
def test_what_the_worker_refuses(words: str) -> None:
    verdict = judge(f"slotd.engine.llama_worker: {words}", ExitStatus(2))
    assert verdict.reason == "bad_arguments"
    assert words in verdict.message
    gone = "cannot import the engine (No module named 'xllamacpp'); install it with: pip install ..."
    assert judge(f"slotd.engine.llama_worker: {gone}", ExitStatus(2)).reason == "missing_library"


# --- what is past does not count ---------------------------------------------------------

OOM = "E ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory"


@pytest.mark.parametrize(
    "past",
    [
        f"1.06.520.077 {OOM}\n1.06.520.107 W sched_reserve: compute buffer allocation failed, "
        "retrying without pipeline parallelism",
        f"1.06.520.077 {OOM}\n1.07.304.130 I srv          init: listening on http://127.0.0.1:18348",
        "WARNING: GPU is nearly out of memory",
        "2026-01-02 03:04:05,678 WARNING gpu: out of memory, using the CPU",
        "W0102 03:04:05.678901 12 gpu.cc:7] out of memory, using the CPU",
        "/v/gpu.py:3: UserWarning: CUDA out of memory",
        "\x1b[33mWARN\x1b[0m out of memory",
        "05:06:07 | WARNING | gpu:12 - out of memory",
    ],
)
def test_an_old_complaint_or_a_mere_warning_does_not_win(past: str) -> None:
    assert judge(f"{past}\nRuntimeError: the moon is in the wrong phase").reason == "exited"
    later = "llama_model_load: error loading model: unknown model architecture: 'x'"
    assert judge(f"{past}\n{later}").reason == "bad_model"
    assert judge(past, ExitStatus(None, signal.SIGSEGV)).reason == "crashed"


def test_of_two_causes_the_last_one_counts() -> None:
    model = "llama_model_load: error loading model: unknown model architecture: 'x'"
    verdict = judge(f"{OOM}\n{model}")
    assert verdict.reason == "bad_model"
    assert "unknown model architecture" in verdict.message
    assert judge(f"{model}\n{OOM}").reason == "out_of_memory"


def test_a_cause_long_ago_is_none() -> None:
    talk = "\n".join(f"request {n} served" for n in range(postmortem.REACH))
    assert judge(f"{OOM}\n{talk}").reason == "exited"
    same = "\n".join(["request served"] * 300)
    assert judge(f"{OOM}\n{same}").reason == "out_of_memory"  # said once or often, one line


# --- signals -------------------------------------------------------------------------------

ABORT = """\
terminate called after throwing an instance of 'std::system_error'
  what():  Resource temporarily unavailable
"""
ASSERT = "/src/ggml/src/ggml.c:1644: GGML_ASSERT(ctx->mem_buffer != NULL) failed\n"
GDB = """\
[New LWP 19000]
[New LWP 19002]
warning: File "/usr/bin/python3-gdb.py" auto-loading has been declined by your `auto-load safe-path' set.
\tadd-auto-load-safe-path /usr/bin/python3-gdb.py
Error while reading shared library symbols for /lib/libggml-base.so:
#0  0x00007f0c1a2b3c4d in wait4 () from /lib/x86_64-linux-gnu/libc.so.6
#1  0x00007f0c1a2b3c4e in ggml_print_backtrace () from /lib/libggml-base.so
[Inferior 1 (process 18999) detached]
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_killed_from_outside(signum: signal.Signals) -> None:
    verdict = judge("CUDA out of memory", ExitStatus(None, signum))
    assert verdict == Verdict(
        "killed", f"the engine was killed by {signum.name}, which did not come from slotd", False
    )
    assert judge("", ExitStatus(128 + signum)).reason == "killed"  # a shell between


@pytest.mark.parametrize(
    "signum",
    [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE],
)
def test_crashed(signum: signal.Signals) -> None:
    for status in (ExitStatus(None, signum), ExitStatus(128 + signum)):
        verdict = judge("tokens 12\ntokens 13", status)
        assert verdict.reason == "crashed"
        assert signum.name in verdict.message


def test_a_crash_is_told_in_the_words_of_the_crash() -> None:
    aborted = ExitStatus(None, signal.SIGABRT)
    assert judge(ABORT, aborted).message.endswith("SIGABRT: what(): Resource temporarily unavailable")
    told = judge(f"/src/llama.cpp:7: GGML_ASSERT(n > 0) failed\n{GDB}", aborted)
    assert told.reason == "crashed"
    assert told.message.endswith("GGML_ASSERT(n > 0) failed")


def test_a_crash_of_which_the_log_knows_better() -> None:
    aborted = ExitStatus(None, signal.SIGABRT)
    words = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n"
    assert judge(words, aborted).reason == "out_of_memory"
    assert judge(ASSERT + GDB, aborted).reason == "out_of_memory"


def test_the_kernels_out_of_memory_killer() -> None:
    assert judge("", ExitStatus(None, signal.SIGKILL), oom_killed=True).reason == "out_of_memory"
    assert judge("", ExitStatus(137), oom_killed=True).reason == "out_of_memory"
    assert judge("", ExitStatus(None, signal.SIGTERM), oom_killed=True).reason == "killed"
    assert judge("worker 3 died", FAILED, oom_killed=True).reason == "out_of_memory"  # the victim was a child
    assert judge(LLAMA[0][3], FAILED, oom_killed=True).reason == "bad_model"


def test_an_end_that_nobody_saw() -> None:
    verdict = judge("slotd: 127.0.0.1:9 accepts no connections any more", ExitStatus(None))
    assert verdict.reason == "exited"
    assert "accepts no connections" in verdict.message


# --- whatever an engine prints ----------------------------------------------------------------


@given(
    st.lists(st.text(max_size=60) | st.sampled_from([OOM, ABORT, *HEAD.splitlines()]), max_size=60),
    st.builds(ExitStatus, st.none() | st.integers(0, 255), st.none() | st.integers(1, 64)),
    st.booleans(),
)
def test_any_log_is_judged(log: list[str], status: ExitStatus, oom_killed: bool) -> None:
    verdict = explain(status, log, oom_killed=oom_killed)
    assert len(verdict.message) <= MESSAGE_MAX
    assert verdict.message.isprintable()
    assert verdict.reason in postmortem._HEADLINES


def test_long_lines_are_cut() -> None:
    message = judge("RuntimeError: " + "x" * 9000).message
    assert message.endswith("…")
    assert len(message) <= MESSAGE_MAX


# --- the real engine ---------------------------------------------------------------------------


@pytest.mark.real_engine
@pytest.mark.parametrize(
    ("content", "words"),
    [(b"hello, I am no model\n", "invalid magic"), (b"", "failed to read magic"), (None, "No such file")],
)
def test_the_installed_worker_speaks_so(tmp_path: Path, content: bytes | None, words: str) -> None:
    pytest.importorskip("xllamacpp")
    path = tmp_path / "m.gguf"
    if content is not None:
        path.write_bytes(content)
    argv = [sys.executable, "-m", "slotd.engine.llama_worker", "--port", "0", "--model", str(path)]
    run = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
    verdict = judge(run.stdout.decode(errors="replace"), ExitStatus(run.returncode))
    assert verdict.reason == "bad_model"
    assert re.search(words, verdict.message)
