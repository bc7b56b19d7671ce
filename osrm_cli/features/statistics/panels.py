"""Panels in which a second moment is summed: its columns, each from the diagonal down. No torch in this file."""

MOMENT_COLUMNS = 192  # of a panel


def moment_panels(d_in: int) -> list[tuple[int, int]]:
    """Rows and columns of each panel, from the left: the last rows of the columns that it holds."""
    return [(d_in - start, min(MOMENT_COLUMNS, d_in - start)) for start in range(0, d_in, MOMENT_COLUMNS)]
