"""``hf:`` sources: a file of a Hugging Face repository, through ``huggingface_hub``.

The library blocks and cannot be cancelled, so it runs in a process of its own
(:mod:`slotd.model.hf_tool`). It keeps what it has in the staging folder and
goes on from there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from slotd.model import hf_tool
from slotd.model.errors import ModelFetchFailed
from slotd.model.files import Staged, hash_file
from slotd.model.progress import Progress, Report
from slotd.model.source import HfSource
from slotd.model.tool import ToolFailed, run_tool, watch_folder

__all__ = ["fetch_hf"]

_SIZE = re.compile(rf"{hf_tool.SIZE_WORD} (\d+)")


async def fetch_hf(source: HfSource, staging: Path, report: Report, *, env: Mapping[str, str]) -> Staged:
    """Download the file and hash it.

    ``env`` is the whole environment of the helper process; the library reads
    its own settings (token, endpoint, proxy) from it. Raises
    :class:`ModelFetchFailed`, or OSError for trouble with the disk. Cancelled,
    it leaves what has come for the next call.
    """
    if find_spec("huggingface_hub") is None:
        raise ModelFetchFailed(
            f"fetching from {source.repo} needs huggingface_hub; install it with: pip install 'slotd[hf]'",
            reason="tool_missing",
        )
    folder = staging / "hf"
    folder.mkdir(exist_ok=True)
    total: int | None = None

    def heard(line: str) -> bool:
        nonlocal total
        match = _SIZE.fullmatch(line)
        if match:
            total = int(match[1])
        return match is not None

    def tell(done: int) -> None:
        report(Progress("downloading", done if total is None else min(done, total), total))

    full_env = {**env, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    argv = [sys.executable, "-P", hf_tool.__file__, source.repo, source.file, source.revision, str(folder)]
    try:
        await run_tool(argv, env=full_env, heard=heard, beside=partial(watch_folder, folder, tell))
    except ToolFailed as trouble:
        raise ModelFetchFailed(
            f"cannot download {source.file} from {source.repo}: {trouble.summary()}",
            reason=hf_tool.REASONS.get(trouble.status, "tool_failed"),
            details={"log": list(trouble.words), "exit": trouble.status},
        ) from trouble
    file = folder / source.file
    return Staged(file, (await hash_file(file, report)).hexdigest())
