#!/usr/bin/env python3
"""Writes docs/python-api.md from the docstrings of the Python package (--check: compare).

It reads the sources and imports nothing, so it needs neither numpy nor torch.
"""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "crates/deltaloom-python/python/deltaloom"
PAGE = ROOT / "docs/python-api.md"
# Modules in the order of the page; the first shows what it imports from the private ones. One that does
# not exist is left out.
MODULES = ["__init__", "numpy", "torch", "lm", "transformers", "lightning", "accelerate", "dcp"]
LONGEST = 96

Function = ast.FunctionDef | ast.AsyncFunctionDef


def tree(name: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))


def public(module: ast.Module) -> list[str]:
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [name for name in ast.literal_eval(node.value) if not name.startswith("_")]
    return []


def defined(module: ast.Module) -> dict[str, ast.AST]:
    """What a module defines and what it imports from the package, by name."""
    found: dict[str, ast.AST] = {}
    for node in module.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deltaloom._"):
            if node.module != "deltaloom._lib":
                inner = defined(tree(node.module.removeprefix("deltaloom.")))
                found.update({alias.name: inner[alias.name] for alias in node.names if alias.name in inner})
        elif isinstance(node, Function | ast.ClassDef):
            found[node.name] = node
    return found


def signature(node: Function, name: str, is_method: bool) -> str:
    arguments = node.args
    if is_method and arguments.args and not is_static(node):
        arguments = ast.parse(f"def f({ast.unparse(arguments)}): ...").body[0].args  # type: ignore[attr-defined]
        del arguments.args[0]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    line = f"{name}({ast.unparse(arguments)}){returns}"
    if len(line) <= LONGEST:
        return line
    parts: list[str] = []
    depth, part = 0, ""
    for char in ast.unparse(arguments):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += char
    parts.append(part.strip())
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"


def is_static(node: Function) -> bool:
    return any(ast.unparse(one) == "staticmethod" for one in node.decorator_list)


def text(node: ast.AST) -> str:
    found = ast.get_docstring(node) or ""  # type: ignore[arg-type]
    return sections(inspect.cleandoc(found))


def sections(doc: str) -> str:
    """Args, Raises and Attributes become lists."""
    lines, in_list = [], False
    for line in doc.splitlines():
        if line in ("Args:", "Raises:", "Attributes:"):
            lines += [f"*{line[:-1]}*", ""]
            in_list = True
        elif in_list and line.startswith("        "):
            lines[-1] += " " + line.strip()
        elif in_list and line.startswith("    "):
            name, _, told = line.strip().partition(": ")
            lines.append(f"- `{name}`: {told}")
        else:
            in_list = in_list and not line
            lines.append(line)
    return "\n".join(lines)


def of_class(name: str, node: ast.ClassDef) -> list[str]:
    bases = ", ".join(f"`{ast.unparse(base)}`" for base in node.bases)
    out = [f"### {name}" + (f" ({bases})" if bases else ""), text(node)]
    for item in node.body:
        if not isinstance(item, Function):
            continue
        is_overload = any(ast.unparse(one) == "overload" for one in item.decorator_list)
        is_shown = not item.name.startswith("_") or item.name in ("__init__", "__getitem__")
        if is_overload or not is_shown or not (ast.get_docstring(item) or item.name == "__init__"):
            continue
        if item.name == "__init__":
            if ast.get_docstring(node) and "Args:" in (ast.get_docstring(node) or ""):
                out.append(f"```python\n{signature(item, name, True)}\n```")
            continue
        is_property = any(ast.unparse(one) == "property" for one in item.decorator_list)
        shown = item.name if is_property else signature(item, f"{name}.{item.name}", True)
        out += [f"```python\n{name}.{shown}\n```" if is_property else f"```python\n{shown}\n```", text(item)]
    return out


def page() -> str:
    out = [
        "# The Python package, function by function",
        "Made from the docstrings by `tools/python_api.py`. [python.md](python.md) explains how to use it.",
    ]
    for name in MODULES:
        if not (PACKAGE / f"{name}.py").exists():
            continue
        module = tree(name)
        known = defined(module)
        title = "deltaloom" if name == "__init__" else f"deltaloom.{name}"
        out += [f"## {title}", text(module)]
        for item in public(module):
            node = known.get(item)
            if isinstance(node, ast.ClassDef):
                out += of_class(item, node)
            elif isinstance(node, Function):
                out += [f"### {item}", f"```python\n{signature(node, item, False)}\n```", text(node)]
    return "\n\n".join(part for part in out if part) + "\n"


def main() -> None:
    made = page()
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != made:
            sys.exit(f"{PAGE.relative_to(ROOT)} is out of date: run tools/python_api.py")
        return
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
