"""From ``slotd.toml`` to a valid configuration, or to the list of all that is wrong with it."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slotd.config.checks import CHECKS
from slotd.config.draft import Drafts, read_drafts
from slotd.config.model import Config
from slotd.config.outside import find_secrets, find_state_dir, look_for_files
from slotd.config.paths import expand
from slotd.config.problems import Problem, Report
from slotd.config.secrets import Secrets
from slotd.errors import ConfigInvalid
from slotd.model.source import ModelRef

__all__ = [
    "ConfigFile",
    "ConfigText",
    "LoadedConfig",
    "Overrides",
    "load_config",
    "parse_config",
    "read_config",
]

MAX_CONFIG_BYTES = 1024 * 1024

Overrides = Mapping[str, Mapping[str, Any]]
"""Section → key → value that stands in the place of the text's own."""

_NO_OVERRIDES: Overrides = {}


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A valid configuration with what surrounds it.

    ``source``: where it came from, for people. ``base_dir``: relative paths in
    it begin here. ``state_dir``: absolute; it need not exist. ``warnings``:
    suspicious but usable, one line each. ``secrets`` are kept apart so that
    ``config`` may be shown and compared.
    """

    config: Config
    source: str
    base_dir: Path
    state_dir: Path
    secrets: Secrets = field(default_factory=Secrets)
    warnings: tuple[str, ...] = ()

    def path(self, text: str) -> Path:
        """A path of the configuration as an absolute one."""
        return self.base_dir / expand(text)

    def model_ref(self, model: str) -> ModelRef:
        """What the model store needs to fetch a model. Raises KeyError for an unknown model id."""
        config = self.config.models[model]
        return ModelRef(model, config.source, config.sha256, self.base_dir, config.size_mb)


@dataclass(frozen=True, slots=True)
class ConfigText:
    """A configuration's text, read once. ``source`` and ``base_dir``: as in :class:`LoadedConfig`."""

    text: str = field(repr=False)
    source: str
    base_dir: Path

    def parse(
        self, *, env: Mapping[str, str] = os.environ, overrides: Overrides = _NO_OVERRIDES
    ) -> LoadedConfig:
        """Check it; see :func:`parse_config`."""
        return parse_config(self.text, self.source, self.base_dir, env=env, overrides=overrides)


def load_config(
    path: str | os.PathLike[str],
    *,
    env: Mapping[str, str] = os.environ,
    overrides: Overrides = _NO_OVERRIDES,
) -> LoadedConfig:
    """Read and check a configuration file.

    Blocks on the disk: run it in a thread where a loop must go on. Raises
    :class:`ConfigInvalid` with every fault, also for a file that cannot be read.
    """
    return read_config(path).parse(env=env, overrides=overrides)


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """Where a configuration comes from, to be read now and again. ``env`` is read each time."""

    path: str | os.PathLike[str]
    env: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    overrides: Overrides = field(default_factory=dict)

    def load(self) -> LoadedConfig:
        """See :func:`load_config`."""
        return load_config(self.path, env=self.env, overrides=self.overrides)


def read_config(path: str | os.PathLike[str]) -> ConfigText:
    """A configuration file's text, unchecked. Blocks; raises :class:`ConfigInvalid`."""
    file = Path(path)
    source = str(path)
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigInvalid(
            source, ["there is no such file; 'slotd init' writes one to begin with"]
        ) from error
    except OSError as error:
        raise ConfigInvalid(source, [f"cannot be read: {error.strerror or error}"]) from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigInvalid(
            source, [f"is longer than {MAX_CONFIG_BYTES // 1024} KB; that is no configuration"]
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigInvalid(source, [f"line {line}: is not text in UTF-8"]) from error
    return ConfigText(text, source, file.absolute().parent)


def parse_config(
    text: str,
    source: str,
    base_dir: Path,
    *,
    env: Mapping[str, str] = os.environ,
    overrides: Overrides = _NO_OVERRIDES,
) -> LoadedConfig:
    """Check a configuration's text. ``base_dir`` must be absolute; ``source`` names it in errors.

    ``overrides`` are put into the text's sections before anything is checked.
    Reads the keys file if one is named, and looks whether local models exist.
    Raises :class:`ConfigInvalid` with every fault found; its details have the ``warnings`` too.
    """
    report = Report()
    drafts = read_drafts(_with(_document(text, source), overrides), report)
    for check in CHECKS:
        check(drafts, report)
    secrets = find_secrets(drafts, base_dir, env, report)
    state_dir = find_state_dir(drafts.server, base_dir, env, report)
    look_for_files(drafts, base_dir, report)
    warnings = tuple(str(warning) for warning in _in_order(report.warnings, drafts))
    if report.problems:
        invalid = ConfigInvalid(source, [str(problem) for problem in _in_order(report.problems, drafts)])
        if warnings:
            invalid.details["warnings"] = list(warnings)
        raise invalid
    return LoadedConfig(drafts.config(), source, base_dir, state_dir, secrets, warnings)


def _document(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid(source, [_syntax(str(error), text)]) from error
    except RecursionError as error:
        raise ConfigInvalid(source, ["lists or tables are nested too deeply"]) from error


def _with(document: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """The document with some keys replaced. A section that is no table stays the fault that it is."""
    merged = dict(document)
    for section, keys in overrides.items():
        own = document.get(section, {})
        if isinstance(own, dict):
            merged[section] = {**own, **keys}
    return merged


def _syntax(message: str, text: str) -> str:
    """tomllib's message, with the place in front."""
    match = re.fullmatch(
        r"(?P<what>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)",
        message,
        re.DOTALL,
    )
    if match is None:
        return f"is not valid TOML: {message}"
    lines = text.split("\n")
    line = match["line"] or len(lines)
    column = match["column"] or len(lines[-1]) + 1
    return f"line {line}, column {column}: {match['what']}"


def _in_order(problems: list[Problem], drafts: Drafts) -> list[Problem]:
    """In the order of the sections and of the entries in them, whichever check found them."""
    sections = list(Config.model_fields)
    entries = {
        "models": list(drafts.model_names),
        "slots": list(drafts.slot_names),
        "upstreams": list(drafts.upstream_names),
    }

    def place(problem: Problem) -> tuple[int, int]:
        section, *rest = problem.path
        if section not in sections:
            return (-1, 0)
        entry = rest[0] if rest else -1
        if isinstance(entry, str):
            entry = entries[section].index(entry) if section in entries else 0
        return (sections.index(str(section)), entry)

    return sorted(problems, key=place)
