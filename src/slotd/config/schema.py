"""The configuration's JSON schema, for editors that complete and check as one types."""

from __future__ import annotations

import json

from slotd.config.model import Config

__all__ = ["schema_text"]


def schema_text() -> str:
    """The schema as the repository keeps it, byte for byte."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    schema["title"] = "slotd.toml"
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
