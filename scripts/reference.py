"""Generated pages of ``docs/``: each function returns one, made from the program; ``pytest --regen`` writes them."""

import ast
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import osrm_cli

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
_NOTE = "<!-- Generated from the program: pytest tests/test_documents.py --regen -->\n"


def cli() -> str:
    """``reference/cli.md``: every command with its arguments and options, from the Typer app."""
    from typer.main import get_command

    from osrm_cli.cli.app import app

    group: Any = get_command(app)
    parts = [
        "# Commands",
        _NOTE,
        "`osrm COMMAND --help` prints the same. Where the command line is silent, the environment variable named here "
        "counts, then [`osrm.toml`](../guides/cluster.md#settings).",
        _table(
            ("command", "what it does"),
            [(f"[`osrm {name}`](#osrm-{name})", _help(command)[0]) for name, command in group.commands.items()],
        ),
    ]
    for name, command in group.commands.items():
        lead, example = _help(command)
        guide = name if (DOCS / f"guides/{name}.md").is_file() else "cluster"
        parts += [f"## osrm {name}", lead, f"```sh\n{example}\n```", f"[Guide](../guides/{guide}.md)"]
        for kind in ("argument", "option"):
            rows = [_parameter(each) for each in command.params if each.param_type_name == kind and each.name != "help"]
            if rows:
                parts.append(_table((kind, "value", "default", "what it does"), rows))
    return _page(parts)


def methods() -> str:
    """``reference/methods.md``: every merging method, from the table and the docstrings of its rules."""
    from osrm_cli.merging.methods import METHODS
    from osrm_cli.merging.requirements import method_option_names, resolve_method_options

    rows = []
    details = []
    for row in METHODS:
        source = f" ([{row.source}](https://arxiv.org/abs/{row.source}))" if row.source else ""
        rows.append((f"`{row.name}`", f"{_escaped(row.summary)}{source}", ", ".join(row.needs), row.result))
        family, name = row.function.split(":")
        rule = getattr(importlib.import_module(f"osrm_cli.merging.methods.{family}"), name)
        defaults, _ = resolve_method_options(row, {})
        options = ", ".join(
            f"`{option.replace('_', '-')}`" + (f" {defaults[option]}" if option in defaults else "")
            for option in sorted(method_option_names(row))
        )
        facts = [f"Options, with their defaults: {options}."]
        facts.append("Takes full models." if row.takes_full_models else "Takes adapters alone.")
        if row.aliases:
            facts.append(f"Also called {', '.join(f'`{alias}`' for alias in row.aliases)}.")
        if row.wrappers:
            inner = "task-arith" if row.name == row.wrappers[0] else row.name.removeprefix(f"{row.wrappers[0]}-")
            spaces = importlib.import_module("osrm_cli.merging.methods.spaces")
            wrapper = _prose(getattr(spaces, row.wrappers[0]))
            details.append((row.name, f"`{inner}` in another space. {wrapper}", facts))
        else:
            details.append((row.name, _prose(rule), facts))
    parts = [
        "# Merging methods",
        _NOTE,
        "`osrm merge --list` prints this table; the [guide](../guides/merge.md) says how to choose among methods.",
        _table(("method", "what it does", "needs", "result"), rows),
        "*needs*: what must be there beyond the adapters. `seed`: random masks. `features`: the files of "
        "`osrm collect`. `data`: unlabelled training examples. `labels`: labelled ones.",
        "*result*: `exact`: the result is an adapter as it is. `recompressed`: the result is dense; `--as model` "
        "writes it exactly, an adapter is its truncated SVD. `task-aware`: not one model, each task has its own mask.",
        "In the formulas, `dW_t = s B_t A_t` is the update of adapter `t`, `w_t` its weight, `lambda` the factor on "
        "the merged update.",
    ]
    for name, text, facts in details:
        parts += [f"### {name}", text, " ".join(facts)]
    return _page(parts)


def objectives() -> str:
    """``reference/objectives.md``: how ``osrm init`` may choose A."""
    from osrm_cli.initialization.objectives.table import OBJECTIVES

    rows = []
    details = []
    for row in OBJECTIVES:
        read = [
            text
            for needed, text in (
                (row.needs_others, "the other tasks'"),
                (row.needs_own, "the task's own"),
                (row.needs_gradient, "the gradient of the task's loss"),
            )
            if needed
        ]
        rows.append((f"`{row.name}`", _escaped(row.summary), " and ".join(read) or "nothing"))
        facts = []
        if row.statistics:
            facts.append(f"Statistics that serve it, the preferred one first: {_names(row.statistics)}.")
        facts.append(f"Rows of A are {'' if row.orthonormal else 'not '}orthonormal. Source: {_linked(row.source)}.")
        details.append((row.name, _prose(row.load()), facts))
    parts = [
        "# Objectives",
        _NOTE,
        "`osrm init --objective NAME` chooses the rows of A by one of these; the [guide](../guides/init.md) says when "
        "to take which, [concepts](../concepts.md) have the derivation.",
        _table(("objective", "rows of A", "reads"), rows),
    ]
    for name, text, facts in details:
        parts += [f"### {name}", text, " ".join(facts)]
    return _page(parts)


def statistics() -> str:
    """``reference/statistics.md``: what ``osrm collect`` may keep."""
    from osrm_cli.features.statistics.table import STATISTICS

    parts = [
        "# Statistics",
        _NOTE,
        "`osrm collect --statistic NAME` keeps one of these for each distinct input of the target layers, over `k` "
        "examples. The [guide](../guides/collect.md) says which to take.",
        _table(("statistic", "what it is"), [(f"`{row.name}`", _escaped(row.summary)) for row in STATISTICS]),
    ]
    for row in STATISTICS:
        if row.accumulator:
            module, _, name = row.accumulator.partition(":")
            kept = getattr(importlib.import_module(f"osrm_cli.features.statistics.{module}"), name)
        else:
            kept = importlib.import_module("osrm_cli.features.loss_gradients")
        parts += [f"### {row.name}", _prose(kept)]
    return _page(parts)


def python_api() -> str:
    """``reference/python-api.md``: the public functions, from their signatures and docstrings."""
    parts = [
        "# Python API",
        _NOTE,
        "A command reads its options, calls one of these functions, and prints what it returns. The functions are "
        "imported from `osrm_cli`; all else in the package may change without notice. Bad input raises `OsrmError` "
        "with a `hint`.",
    ]
    for name, function in ((name, getattr(osrm_cli, name)) for name in osrm_cli._MODULES):
        if inspect.isclass(function):  # the exception
            continue
        node = ast.parse(inspect.getsource(function)).body[0]
        if not isinstance(node, ast.FunctionDef):
            raise TypeError(f"{name} is not a function")
        titles = r"^(Args|Returns|Raises|Examples?):\n"
        lead, *sections = re.split(titles, inspect.getdoc(function) or "", flags=re.M)
        parts += [f"## {name}", f"```python\n{_signature(node)}\n```", _linked(lead.replace("``", "`").strip())]
        for title, text in zip(sections[::2], sections[1::2], strict=True):
            if title.startswith("Example"):
                parts += _result(function, node)
            parts.append(_section(title, inspect.cleandoc(text)))
    return _page(parts)


def file_schemas() -> str:
    """``reference/file-schemas.md``: the keys that are checked when a file is read, from the schemas themselves."""
    from osrm_cli.evaluation.score_files import EvalSchema, SweepSchema
    from osrm_cli.features.header_schema import FeaturesHeaderSchema
    from osrm_cli.merging.recipes.recipe_file import RecipeSchema
    from osrm_cli.storage.record_schema import RecordSchema
    from osrm_cli.tasks.task_file import TaskFile

    schemas = {
        "osrm.json": RecordSchema,
        "features/TASK.safetensors": FeaturesHeaderSchema,
        "scores.json": EvalSchema,
        "sweep.json": SweepSchema,
        "task.toml": TaskFile,
        "recipe.yaml": RecipeSchema,
    }
    parts = [
        "# Schemas of files",
        _NOTE,
        "The keys that commands read, and what is accepted as their value: a file with another one is refused in one "
        "line that names the key. What the keys mean, and what else the files hold, is in "
        "[file formats](file-formats.md). `KEY.*` stands for any name, `KEY[]` for each entry of a list; of a features "
        "file it is the record in the header.",
    ]
    for name, schema in schemas.items():
        tree = TypeAdapter(schema).json_schema()
        rows = [(f"`{key}`", _escaped(kind), "yes" if required else "") for key, kind, required in _keys(tree, tree)]
        parts += [f"## {name}", _table(("key", "value", "required"), rows)]
    return _page(parts)


def _keys(node: Mapping[str, Any], tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, bool]]:
    """Every key below a node of a JSON schema: its path, what its value may be, whether it has to be there."""
    for name, value in node.get("properties", {}).items():
        path = prefix + name
        choices = [_referred(choice, tree) for choice in value.get("anyOf", [value])]
        yield path, " or ".join(dict.fromkeys(map(_kind, choices))), name in node.get("required", ())
        for choice in choices:
            further = choice.get("additionalProperties")
            for suffix, inner in (("", choice), ("[]", choice.get("items")), (".*", further)):
                for one in inner.get("anyOf", [inner]) if isinstance(inner, dict) else ():
                    yield from _keys(_referred(one, tree), tree, f"{path}{suffix}.")


def _referred(node: Mapping[str, Any], tree: Mapping[str, Any]) -> Mapping[str, Any]:
    name = node.get("$ref", "").rpartition("/")[2]
    return tree["$defs"][name] if name else node


def _kind(node: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    if choices := node.get("enum", [node["const"]] if "const" in node else []):
        return ", ".join(f"`{choice}`" for choice in choices)
    name = node.get("type", "any")
    kind = {"object": "mapping", "array": "list"}.get(name, name)
    signs = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{words} {node[sign]:,}" for sign, words in signs.items() if sign in node]
    return " ".join([kind, *limits])


def modules() -> str:
    """The file list of ``development/architecture.md``: every module with the first line of its docstring."""
    package = ROOT / "osrm_cli"
    parts = []
    for folder in sorted({path.parent for path in package.rglob("*.py")}):
        paths = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
        if not paths:
            continue
        name = folder.relative_to(ROOT).as_posix()
        init = folder / "__init__.py"
        head = [f"### {name}/", *([_summary(init)] if init.is_file() else [])]
        table = _table(("file", "what it holds"), [(f"`{path.name}`", _escaped(_summary(path))) for path in paths])
        parts += [*head, table]
    return "\n\n".join(part for part in parts if part)


PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": cli,
    "reference/methods.md": methods,
    "reference/objectives.md": objectives,
    "reference/statistics.md": statistics,
    "reference/file-schemas.md": file_schemas,
    "reference/python-api.md": python_api,
}


def _signature(node: ast.FunctionDef) -> str:
    """A definition's first lines as its source has them, an argument a line."""
    given = node.args
    plain = [ast.unparse(argument) for argument in given.args]
    defaults = [ast.unparse(value) for value in given.defaults]
    first = len(plain) - len(defaults)
    lines = plain[:first] + [f"{name} = {value}" for name, value in zip(plain[first:], defaults, strict=True)]
    if given.kwonlyargs:
        lines.append("*")
    for argument, value in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        lines.append(ast.unparse(argument) + (f" = {ast.unparse(value)}" if value else ""))
    if given.kwarg:
        lines.append(f"**{ast.unparse(given.kwarg)}")
    arguments = "".join(f"    {line},\n" for line in lines)
    return f"{node.name}(\n{arguments}) -> {ast.unparse(node.returns) if node.returns else None}"


def _result(function: Any, node: ast.FunctionDef) -> list[str]:
    """What a result of this package holds: the attributes of its class."""
    kind = function.__globals__.get(ast.unparse(node.returns)) if node.returns else None
    if not inspect.isclass(kind):
        return []
    found = re.search(r"^Attributes:\n((?:\s.*\n?|\n)*)", inspect.getdoc(kind) or "", re.M)
    if not found:
        return []
    return [_section(f"Attributes of the {kind.__name__} returned", inspect.cleandoc(found[1]))]


def _section(title: str, text: str) -> str:
    """A section of a docstring: names with what they are as a list, code as a block, the rest as it is."""
    if title.startswith("Example"):
        return f"```python\n{text}\n```"
    text = text.replace("``", "`")
    if title == "Returns":
        return f"**Returns** {_linked(' '.join(text.split()))}"
    entries = re.findall(r"^(\S+): ((?:.|\n(?=\s))*)", text, re.M)
    rows = [f"- `{name}`: {_linked(' '.join(what.split()))}" for name, what in entries]
    return "\n".join([f"**{title}**", "", *rows])


def _page(parts: Iterable[str]) -> str:
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _help(command: Any) -> tuple[str, str]:
    """A command's help and the example at its end."""
    text, _, example = inspect.cleandoc(command.help).partition("Example: ")
    return " ".join(text.split()), example.strip()


def _parameter(parameter: Any) -> tuple[str, str, str, str]:
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    if parameter.param_type_name == "argument":
        names = f"`{parameter.name}`"
    default = parameter.default
    shown = (
        "" if default is None or default is False or callable(default) else f"`{getattr(default, 'value', default)}`"
    )
    if parameter.required:
        shown = "required"
    elif default is True:
        shown = f"`{parameter.opts[0]}`"
    text = parameter.help + (f" Variable: `{parameter.envvar}`." if getattr(parameter, "envvar", None) else "")
    return names, _value(parameter), shown, _escaped(text)


def _value(parameter: Any) -> str:
    """What an option takes: its choices, a number with its bounds, a path or a text."""
    annotation = parameter.type_descriptor.annotation
    repeats = typing.get_origin(annotation) is list
    kind = typing.get_args(annotation)[0] if repeats else annotation
    if kind is bool:
        return ""
    low, high = getattr(parameter, "min", None), getattr(parameter, "max", None)
    if parameter.metavar:
        text = f"`{parameter.metavar}`"
    elif issubclass(kind, Enum):
        text = ", ".join(f"`{choice.value}`" for choice in kind)
    else:
        text = {int: "number", float: "number", Path: "path"}.get(kind, "text")
        if low is not None:
            text += f", at least {low:g}" if high is None else f", {low:g} to {high}"
    return text + (", repeatable" if repeats and parameter.param_type_name == "option" else "")


def _prose(thing: Any) -> str:
    """A docstring as Markdown, without its sections for programmers."""
    text = re.split(r"^(?:Args|Raises|Returns|Attributes|Yields):$", inspect.getdoc(thing) or "", flags=re.M)[0]
    return _linked(text.replace("``", "`").strip())


def _linked(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def _names(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("``", "`")


def _summary(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())
