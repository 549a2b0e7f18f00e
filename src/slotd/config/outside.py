"""What a configuration refers to outside its text: keys, directories, local files."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from slotd.config.checks import remotes
from slotd.config.draft import Draft, Drafts
from slotd.config.model import ServerConfig, SlotConfig
from slotd.config.options import ComfyOptions
from slotd.config.paths import default_state_dir, expand
from slotd.config.problems import Report
from slotd.config.secrets import (
    ApiKey,
    KeyFileInvalid,
    KeyInvalid,
    Secrets,
    all_sendable,
    read_api_key,
    read_keys_file,
    split_keys,
)
from slotd.config.urls import is_loopback
from slotd.model.source import FileSource

__all__ = ["find_secrets", "find_state_dir", "look_for_files"]


def find_secrets(drafts: Drafts, base_dir: Path, env: Mapping[str, str], report: Report) -> Secrets:
    api_keys = _api_keys(drafts.server, base_dir, env, report)
    found: dict[str, dict[str, SecretStr]] = {"upstreams": {}, "slots": {}}
    for draft in remotes(drafts):
        variable = draft.value.key_env
        if not variable or not draft.sound("key_env"):
            continue
        key = env.get(variable, "").strip()
        if not key:
            report.warn(
                draft.at("key_env"),
                f"the environment variable {variable} is not set; requests go without a key",
            )
        elif not all_sendable([key]):
            report.fault(
                draft.at("key_env"), f"the key in {variable} holds characters that a header cannot carry"
            )
        else:
            found[str(draft.path[0])][draft.value.name] = SecretStr(key)
    return Secrets(api_keys, found["upstreams"], found["slots"])


def _api_keys(
    draft: Draft[ServerConfig], base_dir: Path, env: Mapping[str, str], report: Report
) -> tuple[ApiKey, ...]:
    server = draft.value
    keys: list[ApiKey] = []
    if draft.sound("api_keys_env") and server.api_keys_env:
        from_env = split_keys(env.get(server.api_keys_env, ""))
        try:
            keys.extend(map(read_api_key, from_env))
        except KeyInvalid as error:
            report.fault(draft.at("api_keys_env"), f"a key in {server.api_keys_env} {error}")
        if not from_env and server.api_keys_env != ServerConfig().api_keys_env:
            report.warn(
                draft.at("api_keys_env"), f"the environment variable {server.api_keys_env} is not set"
            )
    if draft.sound("api_keys_file") and server.api_keys_file:
        path = base_dir / expand(server.api_keys_file)
        try:
            from_file = read_keys_file(path)
            keys.extend(map(read_api_key, from_file))
            if os.name == "posix" and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
                report.warn(
                    draft.at("api_keys_file"), "other users of this machine can read it; chmod 600 it"
                )
        except KeyFileInvalid as error:
            report.fault(draft.at("api_keys_file"), str(error))
        except KeyInvalid as error:
            report.fault(draft.at("api_keys_file"), f"a key in it {error}")
    by_secret: dict[str, ApiKey] = {}
    for key in keys:
        # Of a key that is given twice, with two priorities, the lower one counts.
        other = by_secret.setdefault(key.secret.get_secret_value(), key)
        if key.priority is not None and (other.priority is None or key.priority < other.priority):
            by_secret[key.secret.get_secret_value()] = key
    _refuse_open_doors(draft, bool(keys), report)
    return tuple(by_secret.values())


def _refuse_open_doors(draft: Draft[ServerConfig], keyed: bool, report: Report) -> None:
    # A keys source that is itself faulty says so by itself.
    if keyed or not draft.sound("host", "api_keys_env", "api_keys_file", "allow_open"):
        return
    server = draft.value
    if is_loopback(server.host):
        return
    if server.allow_open:
        report.warn(
            draft.at("allow_open"), f"everyone who can reach {server.host} may use this server without a key"
        )
    else:
        report.fault(
            draft.at("host"),
            f"{server.host!r} can be reached from other machines: set API keys "
            f"({server.api_keys_env or 'api_keys_env'} or api_keys_file), or allow_open = true",
        )


def find_state_dir(
    draft: Draft[ServerConfig], base_dir: Path, env: Mapping[str, str], report: Report
) -> Path:
    if draft.value.state_dir:
        return base_dir / expand(draft.value.state_dir)
    try:
        return default_state_dir(env)
    except RuntimeError:
        report.fault(draft.at("state_dir"), "missing; there is no home directory to put it in")
        return base_dir


def look_for_files(drafts: Drafts, base_dir: Path, report: Report) -> None:
    """Models may come later; a workflow is part of the configuration, and is read and checked."""
    for draft in drafts.models.values():
        if not draft.sound("source"):
            continue
        source = draft.value.parsed()
        if isinstance(source, FileSource):
            path = base_dir / expand(source.path)
            if not path.is_file():
                report.warn(draft.at("source"), f"there is no file {path}")
    for slot in drafts.slots.values():
        if isinstance(slot.value.options, ComfyOptions) and slot.sound("options"):
            _read_workflows(slot, slot.value.options, base_dir, report)


def _read_workflows(slot: Draft[SlotConfig], options: ComfyOptions, base_dir: Path, report: Report) -> None:
    # Here, not above: few configurations have workflows, and every start would pay.
    from slotd.comfy.workflow import WorkflowInvalid, read_workflow

    for key, files in (("workflows", options.workflows), ("edit_workflows", options.edit_workflows)):
        for name, text in files.items():
            path = base_dir / expand(text)
            try:
                read_workflow(path, edits=key == "edit_workflows")
            except WorkflowInvalid as error:
                report.fault(slot.at("options", key, name), f"{path}: {error}")
