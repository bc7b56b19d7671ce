"""Merging methods: the table, and how to find a row.

No torch in this file, ``method`` and ``table``: shell completion and ``--help`` read them.
"""

import difflib
from dataclasses import replace

from osrm_cli.errors import OsrmError
from osrm_cli.merging.methods.method import Method
from osrm_cli.merging.methods.table import METHODS

__all__ = ["METHODS", "Method", "find_method"]


def find_method(name: str) -> Method:
    """Return a method by its name or an alias; ``_`` is accepted for ``-``, ``pico+RULE`` for any rule but task-aware.

    Raises:
        OsrmError: If there is none; names the nearest ones.
    """
    key = name.strip().lower().replace("_", "-")
    if key.startswith("pico+"):
        return _wrap_merging_rule("pico", find_method(key.removeprefix("pico+")))
    rows = {label: method for method in METHODS for label in (method.name, *method.aliases)}
    if key in rows:
        return rows[key]
    near = difflib.get_close_matches(key, rows, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "osrm merge --list"
    raise OsrmError(f"unknown method '{name}'", hint)


def _wrap_merging_rule(wrapper: str, rule: Method) -> Method:
    if rule.is_task_aware or wrapper in rule.wrappers:
        raise OsrmError(f"{wrapper} cannot go before '{rule.name}'", f"for example {wrapper}+ties")
    if rule.learns_weights or rule.data_statistic == "factors":
        learned = "weights are learned for the plain sum" if rule.learns_weights else "factors are learned as a whole"
        raise OsrmError(f"{wrapper}+{rule.name}: the {learned}", "leave out what goes before it")
    return replace(
        rule,
        name=f"{wrapper}+{rule.name}",
        summary=f"{rule.name}, after scaling down what the Bs share",
        aliases=(),
        wrappers=(wrapper, *rule.wrappers),
        takes_full_models=False,
    )
