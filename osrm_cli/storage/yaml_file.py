"""Reads a YAML file from elsewhere: plain values only, of bounded size."""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import Node

from osrm_cli.errors import OsrmError
from osrm_cli.storage.input_files import check_regular_file

MAX_BYTES = 16 << 20
MAX_NODES = 1 << 20  # with what each alias stands for: without a limit, a file of 300 bytes can hold 10 ** 9

_INTEGER = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"


class _YamlLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which reads YAML 1.1, without its numbers in base 60: ``1:30`` is a text, not 90."""


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in (_INTEGER, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_YamlLoader.add_implicit_resolver(
    _INTEGER, re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]+|0|[1-9][0-9_]*)\Z"), list("-+0123456789")
)
_YamlLoader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"([-+]?([0-9][0-9_]*)\.[0-9_]*([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
    ),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> Any:
    """The one document of a file.

    Raises:
        OsrmError: If the file is missing, not a file, too large, or not YAML of plain values.
    """
    check_regular_file(path)
    if path.stat().st_size > MAX_BYTES:
        raise OsrmError(f"{path} has more than {MAX_BYTES >> 20} MiB, which is too large for a recipe")
    try:
        loader = _YamlLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        _count_yaml_nodes(node, {})
        return loader.construct_document(node) if node else None
    except RecursionError:
        raise OsrmError(f"{path} is not YAML that can be read: values are nested too deeply") from None
    # Besides its own errors, PyYAML lets those of Python's constructors through, as for '!!int x'.
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise OsrmError(f"{path} is not YAML that can be read: {error}") from None


def _count_yaml_nodes(node: Node | None, counts: dict[int, int]) -> int:
    """Nodes below and including one, where an alias counts as what it stands for."""
    if node is None or id(node) in counts:
        count = counts.get(id(node), 0)
        if count < 0:
            raise ValueError("a value contains itself")
        return count
    counts[id(node)] = -1
    children: list[Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    count = 1 + sum(_count_yaml_nodes(child, counts) for child in children)
    if count > MAX_NODES:
        raise ValueError(f"with its aliases written out, it holds more than {MAX_NODES} values")
    counts[id(node)] = count
    return count
