"""How a rank is written on the command line and in recipes: a number, or ``auto:`` and a share of the energy."""

import reprlib

from osrm_cli.errors import OsrmError


def parse_rank_limit(text: str) -> dict[str, int | float]:
    """A rank as ``{"rank": 16}``, or ``{"energy": 0.95}`` for ``auto:0.95``.

    Raises:
        OsrmError: If it is neither.
    """
    try:
        share = text.removeprefix("auto:")
        return {"energy": float(share)} if share != text else {"rank": int(text)}
    except ValueError:
        raise OsrmError(
            f"option 'rank' is {reprlib.repr(text)}", "give a number, or auto:0.95 for the rank that keeps 95 %"
        ) from None
