"""Reading a document piece by piece, so that one fault does not hide the others.

Every table is validated by itself. Of a faulty one, what is sound is kept: the
faulty keys are set aside (their defaults stand in) and remembered, so that the
checks that span tables still run on the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from slotd.config.fields import Section
from slotd.config.model import (
    BindingConfig,
    Config,
    DispatcherConfig,
    JournalConfig,
    MemoryConfig,
    ModelConfig,
    OmniConfig,
    ProcessConfig,
    ServerConfig,
    SlotConfig,
    UpstreamConfig,
)
from slotd.config.options import OPTIONS
from slotd.config.problems import Path, Report, describe, unknown_key

__all__ = ["Draft", "Drafts", "read_drafts"]

M = TypeVar("M", bound=Section)

_STAND_INS: dict[type[Section], dict[str, Any]] = {
    ModelConfig: {"source": "file:absent"},
    SlotConfig: {"type": "llm", "engine": "command"},
    UpstreamConfig: {"url": "http://absent"},
    BindingConfig: {"match": "*"},
}
"""For required keys that are missing or faulty. Nobody looks at them: see :meth:`Draft.sound`."""


@dataclass(frozen=True, slots=True)
class Draft(Generic[M]):
    """A table as far as it could be read."""

    path: Path
    value: M
    faulty: frozenset[str] = frozenset()

    def sound(self, *keys: str) -> bool:
        """Whether nothing is wrong under these keys, so that ``value`` has the document's word on them."""
        return self.faulty.isdisjoint(keys)

    def at(self, *keys: str | int) -> Path:
        return (*self.path, *keys)


@dataclass(frozen=True, slots=True)
class Drafts:
    """The whole document. The ``_names`` hold those of unreadable entries too."""

    server: Draft[ServerConfig]
    dispatcher: Draft[DispatcherConfig]
    memory: Draft[MemoryConfig]
    journal: Draft[JournalConfig]
    process: Draft[ProcessConfig]
    omni: Draft[OmniConfig]
    models: dict[str, Draft[ModelConfig]]
    slots: dict[str, Draft[SlotConfig]]
    upstreams: dict[str, Draft[UpstreamConfig]]
    bindings: tuple[Draft[BindingConfig], ...]
    model_names: Mapping[str, object]
    slot_names: Mapping[str, object]
    upstream_names: Mapping[str, object]

    def config(self) -> Config:
        """The configuration. Only meant for a document without faults."""
        return Config(
            server=self.server.value,
            dispatcher=self.dispatcher.value,
            memory=self.memory.value,
            journal=self.journal.value,
            process=self.process.value,
            omni=self.omni.value,
            models={name: draft.value for name, draft in self.models.items()},
            slots={name: draft.value for name, draft in self.slots.items()},
            upstreams={name: draft.value for name, draft in self.upstreams.items()},
            bindings=tuple(draft.value for draft in self.bindings),
        )


def read_drafts(document: Mapping[str, Any], report: Report) -> Drafts:
    """Read everything that can be read; faults go to ``report``."""
    for key, value in document.items():
        if key not in Config.model_fields:
            report.fault((key,), unknown_key(key, Config, value))
    models = _table(document, "models", report)
    slots = _table(document, "slots", report)
    upstreams = _table(document, "upstreams", report)
    return Drafts(
        server=_section(ServerConfig, document, "server", report),
        dispatcher=_section(DispatcherConfig, document, "dispatcher", report),
        memory=_section(MemoryConfig, document, "memory", report),
        journal=_section(JournalConfig, document, "journal", report),
        process=_section(ProcessConfig, document, "process", report),
        omni=_section(OmniConfig, document, "omni", report),
        models=dict(_entries(ModelConfig, models, "models", report)),
        slots=dict(_entries(SlotConfig, slots, "slots", report)),
        upstreams=dict(_entries(UpstreamConfig, upstreams, "upstreams", report)),
        bindings=tuple(_bindings(document, report)),
        model_names=models,
        slot_names=slots,
        upstream_names=upstreams,
    )


def _table(document: Mapping[str, Any], key: str, report: Report) -> Mapping[str, Any]:
    value = document.get(key, {})
    if isinstance(value, dict):
        return value
    report.fault((key,), f"must be tables, each [{key}.NAME]")
    return {}


def _section(model: type[M], document: Mapping[str, Any], key: str, report: Report) -> Draft[M]:
    value = document.get(key, {})
    if isinstance(value, dict):
        return _draft(model, value, (key,), report)
    report.fault((key,), f"must be a table, [{key}]")
    return Draft((key,), model(), frozenset(model.model_fields))


def _entries(
    model: type[M], table: Mapping[str, Any], section: str, report: Report
) -> Iterator[tuple[str, Draft[M]]]:
    for name, value in table.items():
        path: Path = (section, name)
        if not isinstance(value, dict):
            report.fault(path, f"must be a table, [{section}.NAME]; is a NAME missing?")
            continue
        if "name" in value:
            report.fault((*path, "name"), "unknown key; the table's own name is the name")
        yield name, _draft(model, {**value, "name": name}, path, report)


def _bindings(document: Mapping[str, Any], report: Report) -> Iterator[Draft[BindingConfig]]:
    value = document.get("bindings", [])
    if not isinstance(value, list):
        report.fault(("bindings",), "must be a list of tables, each [[bindings]]")
        return
    for index, entry in enumerate(value):
        path: Path = ("bindings", index)
        if isinstance(entry, dict):
            yield _draft(BindingConfig, entry, path, report)
        else:
            report.fault(path, "must be a table, [[bindings]]")


def _draft(model: type[M], table: Mapping[str, Any], path: Path, report: Report) -> Draft[M]:
    rest = dict(table)
    faulty: set[str] = set()
    while True:
        try:
            return Draft(path, model.model_validate(rest), frozenset(faulty))
        except ValidationError as invalid:
            errors = invalid.errors(include_url=False)
        for error in errors:
            loc: Path = error["loc"]
            if not faulty:
                owner = _owner(model, loc, table)
                report.fault((*path, *loc), describe(error, owner))
        # Each round takes away a key of the document or puts a stand-in, so this ends.
        for key in {str(error["loc"][0]) for error in errors}:
            rest.pop(key, None)
            if key in _STAND_INS.get(model, {}):
                rest[key] = _STAND_INS[model][key]
            faulty.add(key)


def _owner(model: type[Section], loc: Path, table: Mapping[str, Any]) -> type[BaseModel]:
    """The model that has the last key of ``loc``."""
    if model is SlotConfig and len(loc) > 1 and loc[0] == "options":
        return OPTIONS[table["engine"]]
    return model
