"""The present configuration as requests are served by it: one frozen value in one cell.

The cell is an :class:`slotd.actor.Snapshot`. Its owner is the reloader
(:mod:`slotd.reload`); a request reads it at its start and so finishes on what it
began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from slotd.config import Config, LoadedConfig, auth_header
from slotd.exchange.policy import Policy
from slotd.exchange.remote import Remote

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration and what follows from it.

    ``policy``: by what rules requests are carried. ``api_keys``: what clients may
    show → the priority that it gives, if it gives one. ``remotes``: upstream →
    how requests reach it. ``upstream_keys``: name of an environment variable →
    the key that was in it.
    """

    config: Config
    policy: Policy
    api_keys: Mapping[str, int | None] = field(repr=False)
    remotes: Mapping[str, Remote] = field(repr=False)
    upstream_keys: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, loaded: LoadedConfig) -> Settings:
        """What follows from ``loaded``."""
        config, secrets = loaded.config, loaded.secrets
        remotes: dict[str, Remote] = {}
        keys: dict[str, str] = {}
        for name, u in config.upstreams.items():
            key = secrets.upstream_keys.get(name)
            shown = auth_header(u.auth, key)
            remotes[name] = Remote(name, u.url, {} if shown is None else dict([shown]), u.connect_timeout_s)
            if key is not None:
                keys[u.key_env] = key.get_secret_value()
        return cls(
            config=config,
            policy=Policy.of(config),
            api_keys={key.secret.get_secret_value(): key.priority for key in secrets.api_keys},
            remotes=remotes,
            upstream_keys=keys,
        )
