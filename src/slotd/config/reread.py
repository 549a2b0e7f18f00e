"""Reading the configuration of a running slotd again: what has changed, and what can be put in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from slotd.config.diff import ConfigDiff, diff, kept
from slotd.config.load import ConfigFile, LoadedConfig, read_config
from slotd.errors import ConfigInvalid

__all__ = ["Reading", "reread"]

MAX_WARNINGS = 100
"""Warnings that are shown."""


@dataclass(frozen=True, slots=True)
class Reading:
    """``diff``: the file against what was in force. ``loaded``: the file, but for what a
    running slotd keeps until it is started again."""

    diff: ConfigDiff
    loaded: LoadedConfig

    def as_dict(self) -> dict[str, Any]:
        """The changes, and what is suspicious about the file."""
        return {**self.diff.as_dict(), "warnings": list(self.loaded.warnings[:MAX_WARNINGS])}


def reread(file: ConfigFile, old: LoadedConfig) -> Reading:
    """Read ``file`` once and check it twice: as it is written, and as it would be in force.

    The second look finds what only a mixture can have: keys removed together with
    a move to a private address, say, while slotd still listens on the public one.
    Blocks on the disk. Raises :class:`ConfigInvalid` with every fault.
    """
    text = read_config(file.path)
    new = text.parse(env=file.env, overrides=file.overrides)
    keep = kept(old.config, new.config)
    in_force = new
    if keep:
        overrides = {s: {**file.overrides.get(s, {}), **keep.get(s, {})} for s in {**file.overrides, **keep}}
        try:
            in_force = text.parse(env=file.env, overrides=overrides)
        except ConfigInvalid as error:
            problems = [
                *error.problems,
                f"this holds while slotd keeps {_named(keep)}; start it again instead",
            ]
            raise ConfigInvalid(text.source, problems) from error
    return Reading(diff(old, new), replace(in_force, state_dir=old.state_dir))


def _named(keep: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{section}.{key} = {value!r}" for section, keys in keep.items() for key, value in keys.items()
    )
