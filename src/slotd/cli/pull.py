"""``slotd pull``: fetch a model's file, with a progress bar."""

from __future__ import annotations

from pathlib import Path

import trio
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from slotd.cli.output import err, out
from slotd.config import LoadedConfig, Overrides, load_config
from slotd.errors import RequestInvalid
from slotd.model.progress import Progress as PullProgress
from slotd.model.store import ModelStore
from slotd.names import close_names

__all__ = ["run"]

SHOWN = 12
"""So many models are named to who asks for one that is not there."""

UNSERVED: Overrides = {"server": {"api_keys_env": "", "api_keys_file": "", "allow_open": True}}
"""Nobody is served, so the keys of clients need not be here."""


def run(config: Path, model: str) -> None:
    """Fetch into the configured state directory. Raises typed errors."""
    loaded = load_config(config, overrides=UNSERVED)
    if model not in loaded.config.models:
        close = close_names(model, loaded.config.models)
        known = ", ".join(repr(name) for name in close or tuple(loaded.config.models)[:SHOWN])
        hint = f"did you mean {known}?" if close else f"its models: {known or 'none'}"
        raise RequestInvalid(f"there is no model {model!r} in {config}; {hint}", details={"close": close})
    path = trio.run(_pull, loaded, model)
    out.print(str(path), markup=False)


async def _pull(loaded: LoadedConfig, model: str) -> Path:
    ref = loaded.model_ref(model)
    store = ModelStore(loaded.state_dir / "models")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
            task = bar.add_task(model, total=None)

            def show(p: PullProgress) -> None:
                bar.update(task, description=p.phase, completed=p.done_bytes, total=p.total_bytes)

            path = await store.fetch(ref, show)
        nursery.cancel_scope.cancel()
    return path
