"""An engine bound to a configured slot: what the slot's actor works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from slotd.arbiter.tenant import Need
from slotd.config import SlotConfig
from slotd.engine import command, llama_cpp
from slotd.engine.attach import AttachLauncher
from slotd.engine.need import Headers, need_for
from slotd.engine.probe import await_ready
from slotd.engine.sanity import check_output
from slotd.errors import RequestInvalid, SlotdError, SpawnFailed, SpawnStarved
from slotd.model.progress import Progress
from slotd.model.source import ModelRef
from slotd.model.store import ModelStore
from slotd.process.gpu import gpu_present
from slotd.process.plan import Address, EngineHandle, Launcher, LaunchPlan
from slotd.slot.backend import Abilities, Finding, Readiness
from slotd.wire.http1 import Http1Pool

__all__ = ["EngineBackend", "external_address", "make_backend"]

CHECK_TIMEOUT_S = 45.0
"""For two short completions, behind whatever else the engine does; what takes longer is not judged."""


class EngineBackend:
    """Implements :class:`slotd.slot.backend.Backend` for the configured engines."""

    def __init__(
        self,
        slot: SlotConfig,
        models: Mapping[str, ModelRef],
        store: ModelStore,
        launcher: Launcher,
        readiness: Readiness,
        abilities: Abilities,
        make_plan: Callable[[str, Path | None], LaunchPlan],
        resolve: Callable[[str], Path],
        offers: tuple[str, ...] = (),
    ) -> None:
        """``offers``: the models that it lists in place of what its engine would."""
        self._slot = slot
        self._models = models
        self._store = store
        self._make_plan = make_plan
        self._resolve = resolve
        self._headers = Headers()
        self._listed: tuple[str, ...] = ()
        self._offers = offers
        self.launcher = launcher
        self.readiness = readiness
        self.abilities = abilities

    def _ref(self, model: str) -> ModelRef | None:
        if not model:
            return None
        ref = self._models.get(model)
        if ref is None:
            raise RequestInvalid(f"slot {self._slot.name!r}: there is no model {model!r} in the config")
        return ref

    def present(self, model: str) -> bool:
        """See :meth:`slotd.slot.backend.Backend.present`."""
        ref = self._models.get(model)
        return ref is None or self._store.present(ref) is not None

    def plan(self, model: str) -> LaunchPlan:
        """See :meth:`slotd.slot.backend.Backend.plan`."""
        ref = self._ref(model)
        path = None
        if ref is not None:
            path = self._store.present(ref)
            if path is None:
                raise SpawnStarved(
                    f"the file of model {model!r} is gone; the next load looks for it at its source"
                )
        return self._make_plan(model, path)

    def need(self, model: str) -> Need:
        """See :meth:`slotd.slot.backend.Backend.need`."""
        ref = self._models.get(model)
        path = None
        if ref is not None:
            try:
                path = self._store.present(ref)
            except SlotdError:
                path = None  # a source that makes no sense: fetching it will say so
        return need_for(
            self._slot,
            path,
            size_mb=ref.size_mb if ref is not None else None,
            gpu_present=gpu_present(),
            resolve=self._resolve,
            read=self._headers,
        )

    async def fetch(self, model: str, progress: Callable[[str, int, int | None], None]) -> Path:
        """See :meth:`slotd.slot.backend.Backend.fetch`."""
        ref = self._ref(model)
        if ref is None:
            raise RequestInvalid(f"slot {self._slot.name!r} has no model to fetch")

        def report(p: Progress) -> None:
            progress(p.phase, p.done_bytes, p.total_bytes)

        return await self._store.fetch(ref, report)

    async def check_output(self, http: Http1Pool, model: str) -> Finding | None:
        """See :meth:`slotd.slot.backend.Backend.check_output`."""
        listed = next(iter(self._listed), model or self._slot.name)
        return await check_output(
            http, model_name=self.abilities.model_name or listed, timeout_s=CHECK_TIMEOUT_S
        )

    async def await_ready(
        self,
        handle: EngineHandle,
        *,
        port_opened: Callable[[], None],
        stranger: Callable[[], None],
        saw: Callable[[str], None],
    ) -> tuple[str, ...]:
        """See :meth:`slotd.slot.backend.Backend.await_ready`."""
        name = self._slot.model or self._slot.name
        listed = await await_ready(
            handle, self.readiness, name, port_opened=port_opened, stranger=stranger, saw=saw
        )
        self._listed = self._offers or listed
        return self._listed


def external_address(url: str) -> Address:
    """Host and port of an ``external`` slot's URL."""
    parts = urlsplit(url)
    return Address(parts.hostname or "127.0.0.1", parts.port or 80)


def make_backend(
    slot: SlotConfig,
    models: Mapping[str, ModelRef],
    store: ModelStore,
    local: Launcher,
    resolve: Callable[[str], Path],
) -> EngineBackend:
    """The backend of one configured slot; ``local`` starts child processes,
    ``resolve`` makes paths of the config absolute."""
    match slot.engine:
        case "llama-cpp":

            def llama_plan(model: str, path: Path | None) -> LaunchPlan:
                if path is None:
                    raise SpawnFailed(f"slot {slot.name!r} needs a model file")
                return llama_cpp.launch_plan(slot, model, path, resolve)

            return EngineBackend(
                slot,
                models,
                store,
                local,
                llama_cpp.readiness,
                llama_cpp.abilities(slot),
                llama_plan,
                resolve,
            )
        case "command":

            def command_plan(model: str, path: Path | None) -> LaunchPlan:
                return command.launch_plan(slot, model, path)

            return EngineBackend(
                slot,
                models,
                store,
                local,
                command.readiness(slot),
                command.abilities(slot),
                command_plan,
                resolve,
            )
        case "comfyui":
            # Here, not above: a start without such a slot need not wait for its adapters.
            from slotd.engine import comfyui

            offered = comfyui.read_workflows(slot, resolve)

            def comfy_plan(model: str, path: Path | None) -> LaunchPlan:
                return comfyui.launch_plan(slot, model, path)

            return EngineBackend(
                slot,
                {} if slot.attached else models,
                store,
                AttachLauncher(external_address(slot.url)) if slot.attached else local,
                comfyui.readiness(slot),
                comfyui.abilities(slot, offered),
                comfy_plan,
                resolve,
                offered.names,
            )
        case "external":
            rules = command.readiness(slot)

            def external_plan(model: str, path: Path | None) -> LaunchPlan:
                return LaunchPlan(slot=slot.name, argv=("external", slot.url))

            return EngineBackend(
                slot,
                {},  # its files are its owner's business
                store,
                AttachLauncher(external_address(slot.url)),
                Readiness(rules.health_path, rules.models_path, own_listener=False),
                command.abilities(slot),
                external_plan,
                resolve,
            )
        case _:
            raise RequestInvalid(f"slot {slot.name!r}: engine {slot.engine!r} is not built in")
