"""The configuration's JSON schema, for editors that complete and check as one types."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from itertools import pairwise

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from slotd.config.fields import Section
from slotd.config.model import Config

__all__ = ["schema_text"]


def schema_text() -> str:
    """The schema as the repository keeps it, byte for byte."""
    described = Config.model_json_schema(schema_generator=_Described)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **described}
    schema["title"] = "slotd.toml"
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


class _Described(GenerateJsonSchema):
    """With the text under each field of a model as its description.

    pydantic would do that (``use_attribute_docstrings``), but as the classes are made:
    it reads and parses the sources each time slotd starts, which takes 40 ms.
    """

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        found = super().model_schema(schema)
        properties = found["properties"]
        for base in schema["cls"].__mro__:
            for name, text in _texts(base) if issubclass(base, Section) else ():
                if name in properties:
                    properties[name].setdefault("description", text)
        return found


def _texts(cls: type) -> Iterator[tuple[str, str]]:
    """The fields of ``cls`` itself that have a text under them."""
    (made,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(made, ast.ClassDef)
    for field, text in pairwise(made.body):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(words))),
            ):
                yield name, inspect.cleandoc(words)
