"""Tables of the documents, cell by cell."""

from tests.run_cli import ROOT

COLUMNS = {
    "single": "single",
    "task-arith": "task-arith",
    "TIES": "ties",
    "TSV": "tsv",
    "KnOTS-TIES": "knots-ties",
    "DARE": "dare",
    "RegMean": "regmean",
}


def read_table(page: str, after: str) -> list[list[str]]:
    """The first table after some words: its header and its rows, without bold and rows of blanks."""
    lines = (ROOT / page).read_text(encoding="utf-8").partition(after)[2].splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("|"))
    end = next((i for i in range(begin, len(lines)) if not lines[i].startswith("|")), len(lines))
    rows = [line.replace("**", "").strip("|").split("|") for line in lines[begin:end]]
    return [[cell.strip() for cell in row] for row in rows[:1] + rows[2:]]


def read_arms(output: str, title: str) -> dict[str, list[str]]:
    """The cells of one of a script's printed tables by the names of its rows."""
    table = output.partition(f"\n{title}\n\n")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return {name: cells for name, *cells in rows}
