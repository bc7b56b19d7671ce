"""Settings from ``osrm.toml``. Precedence: flag > ``OSRM_*`` variable > ``osrm.toml`` > built-in default.

The variables are declared with their options. ``osrm.toml`` is read from the current folder; its top-level
keys apply to every command that has such an option, and a table applies to one command:

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


def read_option_defaults(spellings: Spellings, path: Path = CONFIG_FILE) -> dict[str, dict[str, Any]]:
    """Read ``osrm.toml`` into defaults by command and parameter; nothing if there is no such file.

    Raises:
        OsrmError: If the file is not valid TOML, or a key is not an option of its command.
    """
    if not path.is_file():
        return {}
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OsrmError(f"{path}: {error}", "see the section on osrm.toml in the README") from None
    shared = {key: value for key, value in settings.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in settings.items() if isinstance(value, dict)}
    _check_config_keys(path, shared, {option for options in spellings.values() for option in options}, "any command")
    for command, table in tables.items():
        if command not in spellings:
            raise OsrmError(f"{path}: [{command}] is not a command", f"commands: {', '.join(spellings)}")
        _check_config_keys(path, table, spellings[command], f"osrm {command}")
    return {
        command: {options[key]: value for key, value in {**shared, **tables.get(command, {})}.items() if key in options}
        for command, options in spellings.items()
    }


def _check_config_keys(path: Path, settings: Mapping[str, Any], options: Collection[str], owner: str) -> None:
    for key in settings:
        if key not in options:
            similar = difflib.get_close_matches(key, options, n=1)
            hint = f"did you mean '{similar[0]}'?" if similar else f"options: {', '.join(sorted(options))}"
            raise OsrmError(f"{path}: '{key}' is not an option of {owner}", hint)
