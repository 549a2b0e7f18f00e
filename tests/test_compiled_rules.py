"""Modules that mypyc compiles keep to what it compiles truly: see ARCHITECTURE.md, "A compiled relay"."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def compiled() -> list[str]:
    """What ``setup.py`` lists."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["COMPILED"]:
            names = ast.literal_eval(node.value)
            assert isinstance(names, tuple)
            return [str(name) for name in names]
    raise AssertionError("setup.py lists nothing")


def waits(nodes: list[ast.stmt]) -> Iterator[int]:
    """Lines on which one of these statements waits."""
    for stmt in nodes:
        for node in ast.walk(stmt):
            if isinstance(node, ast.Await | ast.AsyncWith | ast.AsyncFor | ast.Yield | ast.YieldFrom):
                yield node.lineno


def looks(function: ast.AsyncFunctionDef) -> Iterator[int]:
    """Lines on which it looks again whether an attribute is None, with a wait since the last look."""
    pauses = [node.lineno for node in ast.walk(function) if isinstance(node, ast.Await)]
    seen: dict[str, int] = {}
    for node in ast.walk(function):
        match node:
            case ast.Compare(
                left=ast.Attribute() as left,
                ops=[ast.Is() | ast.IsNot()],
                comparators=[ast.Constant(value=None)],
            ):
                before = seen.setdefault(ast.dump(left), node.lineno)
                if any(before < line < node.lineno or node.lineno < line < before for line in pauses):
                    yield node.lineno
            case _:
                pass


def faults(source: str) -> list[str]:
    """What of a module would not be the same, compiled."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Try() | ast.TryStar():
                handlers = [stmt for handler in node.handlers for stmt in handler.body]
                found += [f"{n}: waits in an except" for n in waits(handlers)]
                found += [f"{n}: waits in a finally" for n in waits(node.finalbody)]
            case ast.AsyncFunctionDef():
                found += [f"{n}: looks again at what may have changed" for n in looks(node)]
            case ast.AsyncWith() | ast.AsyncFor():
                found.append(f"{node.lineno}: waits at the end of a block")
            case ast.Attribute(attr="__cause__"):
                found.append(f"{node.lineno}: looks at a cause")
            case ast.ClassDef(bases=bases, keywords=[_, *_]):
                if not any(isinstance(base, ast.Name) and base.id == "Value" for base in bases):
                    found.append(f"{node.lineno}: options in the head of a class")
            case _:
                pass
    return found


@pytest.mark.parametrize("name", compiled())
def test_what_is_compiled_is_the_same_compiled(name: str) -> None:
    assert not faults((ROOT / "src" / name).read_text())


@pytest.mark.parametrize(
    "source",
    [
        "async def f():\n    try:\n        pass\n    finally:\n        await x()",
        "async def f():\n    try:\n        pass\n    except E:\n        if y:\n            await x()",
        "async def f():\n    async with x:\n        pass",
        "async def f():\n    try:\n        pass\n    except E:\n        async for _ in x:\n            pass",
        "def f(e):\n    return e.__cause__",
        "class C(Struct, gc=False):\n    pass",
        "async def f(a):\n    if a.x is not None:\n        return\n    await y()\n    assert a.x is not None",
    ],
)
def test_each_rule_finds_what_breaks_it(source: str) -> None:
    assert faults(source)


def test_what_waits_beside_them_is_well() -> None:
    tried = "    try:\n        await x()\n    except E:\n        y = 1\n    finally:\n        z = 1\n"
    source = f"async def f():\n{tried}    await y"
    assert not faults(source)
