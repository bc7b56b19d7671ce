"""Settings from outside the command line: flag > ``OSRM_*`` variable > ``osrm.toml`` > built-in default.

The variables are declared with the options that they serve. ``osrm.toml`` lies in the current folder; its top-level
keys serve every command that has such an option, and a table serves one command:

    model = "minilm"
    data = "mini"
    [train]
    epochs = 5
"""

import difflib
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError

CONFIG_FILE = Path("osrm.toml")

# Options by command: the spelling on the command line without its dashes -> the parameter's name in Python.
Spellings = Mapping[str, Mapping[str, str]]


def read_defaults(spellings: Spellings, path: Path = CONFIG_FILE) -> dict[str, dict[str, Any]]:
    """Read ``osrm.toml`` into defaults by command and parameter; nothing if there is no such file.

    Raises:
        OsrmError: If the file is no TOML, or a key is no option of the command that it stands for.
    """
    if not path.is_file():
        return {}
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OsrmError(f"{path}: {error}", "see the section on osrm.toml in the README") from None
    shared = {key: value for key, value in settings.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in settings.items() if isinstance(value, dict)}
    _known(path, shared, {option for options in spellings.values() for option in options}, "any command")
    for command, table in tables.items():
        if command not in spellings:
            raise OsrmError(f"{path}: [{command}] is no command", f"commands: {', '.join(spellings)}")
        _known(path, table, spellings[command], f"osrm {command}")
    return {
        command: {options[key]: value for key, value in {**shared, **tables.get(command, {})}.items() if key in options}
        for command, options in spellings.items()
    }


def _known(path: Path, settings: Mapping[str, Any], options: Collection[str], owner: str) -> None:
    for key in settings:
        if key not in options:
            near = difflib.get_close_matches(key, options, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"options: {', '.join(sorted(options))}"
            raise OsrmError(f"{path}: '{key}' is no option of {owner}", hint)
