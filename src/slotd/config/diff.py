"""What differs between two configurations, for people and for programs.

Pure. Nothing in a :class:`ConfigDiff` is a secret: keys, environments of engines
and what sounds like a password on a command line are only ever "changed".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

from pydantic import SecretStr

from slotd.config.effect import AT_RESTART, Effect, effect_of
from slotd.config.fields import Section
from slotd.config.load import LoadedConfig
from slotd.config.model import BindingConfig, Config
from slotd.config.problems import Path, dotted
from slotd.config.shown import Scalar, shown, written

__all__ = ["ConfigDiff", "KeyChange", "SectionChange", "diff", "kept"]

MAX_SECTIONS = 200
"""Sections that are shown; of the others there is a count."""

MAX_KEYS = 100
"""Keys of a section that are shown."""

LINE_KEYS = 30
"""Keys of a new section that its line shows."""


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A key's value before and after; both None if ``hidden``, as what may be a secret is."""

    key: str
    old: Scalar
    new: Scalar
    effect: Effect = Effect.NOW
    hidden: bool = False

    def as_dict(self) -> dict[str, Any]:
        values = {"secret": True} if self.hidden else {"old": self.old, "new": self.new}
        return {"key": self.key, **values, "effect": str(self.effect)}


@dataclass(frozen=True, slots=True)
class SectionChange:
    """A table that is new (its keys have no ``old``), gone, or has changed."""

    path: Path
    kind: Literal["added", "removed", "changed"]
    keys: tuple[KeyChange, ...] = ()

    @property
    def name(self) -> str:
        """As TOML spells it."""
        return dotted(self.path)

    def as_dict(self) -> dict[str, Any]:
        listed = [key.as_dict() for key in self.keys[:MAX_KEYS]]
        return {"section": self.name, "change": self.kind, "keys": listed}


@dataclass(frozen=True, slots=True)
class ConfigDiff:
    """Every change, in the order of the sections. False if there is none.

    ``relaunched``: the slots whose engine may have to be loaded again; whether
    it must is seen from its launch plan.
    """

    sections: tuple[SectionChange, ...] = ()
    relaunched: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.sections)

    def slots(self, kind: Literal["added", "removed", "changed"]) -> tuple[str, ...]:
        """The slots that are new, gone, or have changed keys of their own."""
        return tuple(
            str(s.path[1])
            for s in self.sections
            if s.kind == kind and s.path[0] == "slots" and len(s.path) == 2
        )

    def needs_restart(self) -> tuple[str, ...]:
        """The keys that stay as they were until slotd is started again."""
        return tuple(f"{s.name}.{k.key}" for s in self.sections for k in s.keys if k.effect is Effect.RESTART)

    def lines(self) -> tuple[str, ...]:
        """For people: ``+`` new, ``-`` gone, ``~`` changed. A bounded number of bounded lines."""
        lines: list[str] = []
        for section in self.sections[:MAX_SECTIONS]:
            lines += _lines(section)
        more = len(self.sections) - MAX_SECTIONS
        return (*lines, f"... and {more} more sections") if more > 0 else tuple(lines)

    def as_dict(self) -> dict[str, Any]:
        """For programs. Bounded like :meth:`lines`, which it holds too."""
        return {
            "changed": bool(self),
            "sections": [s.as_dict() for s in self.sections[:MAX_SECTIONS]],
            "sections_left_out": max(0, len(self.sections) - MAX_SECTIONS),
            "slots": {
                "added": list(self.slots("added")[:MAX_SECTIONS]),
                "removed": list(self.slots("removed")[:MAX_SECTIONS]),
                "changed": list(self.slots("changed")[:MAX_SECTIONS]),
                "relaunched": list(self.relaunched[:MAX_SECTIONS]),
            },
            "needs_restart": list(self.needs_restart()),
            "lines": list(self.lines()),
        }


_WHEN = {
    Effect.NOW: "",
    Effect.RELAUNCH: "  (its engine is loaded again)",
    Effect.RESTART: "  (when slotd is started again)",
}


def _lines(section: SectionChange) -> Iterator[str]:
    if section.kind != "changed":
        added = section.kind == "added"
        facts = [
            f"{k.key} = {'***' if k.hidden else written(k.new if added else k.old)}"
            for k in section.keys[:LINE_KEYS]
        ]
        rest = ", ..." if len(section.keys) > LINE_KEYS else ""
        yield f"{'+' if added else '-'} {section.name}" + (f": {', '.join(facts)}{rest}" if facts else "")
        return
    for key in section.keys[:MAX_KEYS]:
        old, new = written(key.old), written(key.new)
        what = "changed" if key.hidden or old == new else f"{old} -> {new}"
        yield f"~ {section.name}.{key.key}: {what}{_WHEN[key.effect]}"
    if len(section.keys) > MAX_KEYS:
        yield f"~ {section.name}: and {len(section.keys) - MAX_KEYS} more keys"


# --- finding the differences ---------------------------------------------------------


def diff(old: LoadedConfig, new: LoadedConfig) -> ConfigDiff:
    """What has to be done to ``old`` to make it ``new``, keys found in the environment included."""
    sections: list[SectionChange] = []
    for title in Config.model_fields:
        before, after = getattr(old.config, title), getattr(new.config, title)
        if title == "bindings":
            sections += _bindings(before, after)
        elif isinstance(before, Section):
            keys = [frozenset(c.secrets.api_keys) for c in (old, new)] if title == "server" else (0, 0)
            sections += _changed((title,), before, after, new.config, _hidden("api keys", *keys))
        else:
            sections += _tables(title, old, new)
    return ConfigDiff(tuple(sections), _relaunched(sections, new.config))


def _tables(title: str, old: LoadedConfig, new: LoadedConfig) -> Iterator[SectionChange]:
    before: Mapping[str, Section] = getattr(old.config, title)
    after: Mapping[str, Section] = getattr(new.config, title)
    for name in before:
        if name not in after:
            yield SectionChange((title, name), "removed")
    for name, table in after.items():
        if name not in before:
            keys = _keys((title, name), None, table, new.config)
            yield SectionChange((title, name), "added", tuple(keys))
            continue
        secrets = _hidden("key", _key(old, title, name), _key(new, title, name))
        yield from _changed((title, name), before[name], table, new.config, secrets)
    if title != "models":
        # The order tells which of several comes first.
        was, now = [n for n in before if n in after], [n for n in after if n in before]
        if was != now:
            yield SectionChange((title,), "changed", (KeyChange("order", shown(was), shown(now)),))


def _key(loaded: LoadedConfig, title: str, name: str) -> SecretStr | None:
    """The key that slotd shows to an upstream or to the server of an external slot."""
    secrets = loaded.secrets
    return {"upstreams": secrets.upstream_keys, "slots": secrets.slot_keys}.get(title, {}).get(name)


def _hidden(key: str, old: object, new: object) -> tuple[KeyChange, ...]:
    return (KeyChange(key, None, None, hidden=True),) if old != new else ()


def _changed(
    path: tuple[str, ...], old: Section, new: Section, config: Config, more: tuple[KeyChange, ...]
) -> Iterator[SectionChange]:
    keys = (*_keys(path, old, new, config), *more)
    if keys:
        yield SectionChange(path, "changed", keys)


def _keys(path: tuple[str, ...], old: Section | None, new: Section, config: Config) -> Iterator[KeyChange]:
    """The keys that differ; of a table without an ``old`` one, those that were written."""
    before = {} if old is None else dict(_flat(old))
    after = dict(_flat(new, written_only=old is None))
    for key in (*before, *(k for k in after if k not in before)):
        was, now = before.get(key), after.get(key)
        if was == now and old is not None:
            continue
        effect = Effect.NOW if old is None else effect_of(path, key, config)
        if key.startswith("env."):
            yield KeyChange(key, None, None, effect, hidden=True)
        else:
            yield KeyChange(key, shown(was), shown(now), effect)


def _flat(section: Section, prefix: str = "", *, written_only: bool = False) -> Iterator[tuple[str, Any]]:
    """Key → value, keys of inner tables with a dot."""
    for key in type(section).model_fields:
        if key == "name" or (written_only and key not in section.model_fields_set):
            continue
        value = getattr(section, key)
        if isinstance(value, Section):
            yield from _flat(value, f"{prefix}{key}.", written_only=written_only)
        elif isinstance(value, Mapping):
            for inner, text in value.items():
                yield f"{prefix}{key}.{inner}", text
        else:
            yield prefix + key, value


def _bindings(old: Sequence[BindingConfig], new: Sequence[BindingConfig]) -> Iterator[SectionChange]:
    """Bindings have no names: those that left and those that came, at their places."""
    texts = [[tuple(_flat(b)) for b in bindings] for bindings in (old, new)]
    matcher = SequenceMatcher(None, texts[0], texts[1], autojunk=False)
    for tag, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        if tag == "equal":
            continue
        for index in range(old_from, old_to):
            facts = (KeyChange(k, shown(v), None) for k, v in _flat(old[index], written_only=True))
            yield SectionChange(("bindings", index), "removed", tuple(facts))
        for index in range(new_from, new_to):
            facts = (KeyChange(k, None, shown(v)) for k, v in _flat(new[index], written_only=True))
            yield SectionChange(("bindings", index), "added", tuple(facts))


def _relaunched(sections: Sequence[SectionChange], config: Config) -> tuple[str, ...]:
    def tables(title: str) -> frozenset[str]:
        return frozenset(
            str(s.path[1])
            for s in sections
            if s.path[0] == title and any(k.effect is Effect.RELAUNCH for k in s.keys)
        )

    slots, models = tables("slots"), tables("models")
    return tuple(name for name, slot in config.slots.items() if name in slots or slot.model in models)


# --- what a running slotd keeps ---------------------------------------------------------


def kept(old: Config, new: Config) -> dict[str, dict[str, Any]]:
    """The values of ``old`` that a running slotd cannot exchange for those of ``new``, by section."""
    found: dict[str, dict[str, Any]] = {}
    for title, keys in AT_RESTART.items():
        before, after = getattr(old, title), getattr(new, title)
        changed = {k: getattr(before, k) for k in sorted(keys) if getattr(before, k) != getattr(after, k)}
        if changed:
            found[title] = changed
    return found
