"""The table of merging methods. Adding one is a row here and a function in the file of its family.

No torch here: shell completion and ``--help`` read this table.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from osrm_cli.errors import OsrmError

if TYPE_CHECKING:
    from torch import Tensor

    from osrm_cli.maths.lowrank import LowRank
    from osrm_cli.maths.merging.inputs import LayerUpdates, Options

    Rule = Callable[[LayerUpdates, Options], LowRank | Tensor]

Need = Literal["features", "data", "labels", "seed"]


@dataclass(frozen=True)
class Method:
    """One way to merge.

    Attributes:
        name: Kebab-case.
        summary: One line for ``--list`` and the documentation.
        function: ``family:function`` below this package.
        space: ``low-rank``: the result is natively an adapter; ``element``: it is dense.
        needs: What must be there beyond the adapters.
        exact: Whether the result as an adapter equals the formula without recompression.
        default_lambda: Scale on the result when the user gives none.
        options: Fields of ``Options`` that the method reads, beyond ``scale``.
        aliases: Other names.
        source: arXiv id, or nothing.
    """

    name: str
    summary: str
    function: str
    space: Literal["low-rank", "element"] = "low-rank"
    needs: tuple[Need, ...] = ()
    exact: bool = True
    default_lambda: float = 1.0
    options: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    source: str = ""

    def load(self) -> Rule:
        """Import the method's function."""
        family, function = self.function.split(":")
        rule: Rule = getattr(importlib.import_module(f"{__name__}.{family}"), function)
        return rule


METHODS: tuple[Method, ...] = (
    Method(
        "task-arith",
        "weighted sum of the updates",
        "linear:task_arith",
        aliases=("task-arithmetic", "ta", "sum"),
        source="2212.04089",
    ),
    Method("average", "weighted mean of the updates", "linear:average", aliases=("linear",), source="2203.05482"),
    Method("cat", "weighted sum, stored as stacked factors", "linear:task_arith"),
    Method("svd", "best approximation of the weighted sum at a rank", "linear:svd", options=("rank", "energy")),
)


def find(name: str) -> Method:
    """Return a method by its name or an alias; ``_`` is accepted for ``-``.

    Raises:
        OsrmError: If there is none; names the nearest ones.
    """
    rows = {label: method for method in METHODS for label in (method.name, *method.aliases)}
    wanted = name.strip().lower().replace("_", "-")
    if wanted in rows:
        return rows[wanted]
    near = difflib.get_close_matches(wanted, rows, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "osrm merge --list"
    raise OsrmError(f"unknown method '{name}'", hint)
