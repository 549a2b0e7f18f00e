"""GPU memory, as NVIDIA's management library (NVML) tells it.

Needs the ``nvidia-ml-py`` package (the extra ``slotd[nvidia]``) and a driver;
without either there is, as far as slotd knows, no GPU. Nothing here raises: a
GPU that cannot be asked must not take the supervisor with it. The library is
looked for once, at the first question; without it every answer is immediate.
With it an answer is a call into the driver, fractions of a millisecond as a
rule. May be called from any thread.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Collection
from typing import Any

import structlog

__all__ = ["free_gpu_mb", "gpu_mb_of", "gpu_present"]

log = structlog.get_logger("slotd")

MIB = 1 << 20
_LISTS = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")


def gpu_present() -> bool:
    """Whether there is a GPU that can be asked."""
    return bool(_devices())


def free_gpu_mb() -> tuple[int, int] | None:
    """MiB free and MiB in all, summed over the GPUs; None without one, or when one does not answer."""
    free = total = 0
    for nvml, device in _devices():
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(device)
            free += int(memory.free)
            total += int(memory.total)
        except Exception as error:  # the library's own kinds, and what ctypes makes of a broken driver
            log.debug("a GPU does not tell its memory", error=str(error))
            return None
    return (free // MIB, total // MIB) if total else None


def gpu_mb_of(pids: Collection[int]) -> int:
    """GPU memory in MiB held by these processes, on all devices together; 0 where that cannot be known.

    NVML numbers processes as the host does: inside a container with process
    ids of its own, nothing is found.
    """
    if not pids or not (devices := _devices()):
        return 0
    wanted = frozenset(pids)
    held = 0
    for nvml, device in devices:
        by_pid: dict[int, int] = {}
        for name in _LISTS:
            try:
                processes = getattr(nvml, name)(device)
            except Exception as error:  # as above; also a kind of list that the device does not keep
                log.debug("a GPU does not tell its processes", error=str(error))
                continue
            for process in processes:
                if process.pid in wanted:
                    # Listed twice if it computes and draws, each time with all it holds; None = not known.
                    by_pid[process.pid] = max(by_pid.get(process.pid, 0), int(process.usedGpuMemory or 0))
        held += sum(by_pid.values())
    return -(-held // MIB)


@functools.cache
def _devices() -> tuple[tuple[Any, Any], ...]:
    """The library and a handle for each GPU. Never given back: they last as long as slotd."""
    try:
        nvml = importlib.import_module("pynvml")
    except Exception as error:  # not installed, as a rule; an unusable one is as good as none
        log.debug("no NVML", error=str(error))
        return ()
    try:
        nvml.nvmlInit()
        count = int(nvml.nvmlDeviceGetCount())
        return tuple((nvml, nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(count))
    except Exception as error:  # no driver, no permission, a driver of another version
        log.info("there is no GPU that NVML can ask", error=str(error))
        return ()
