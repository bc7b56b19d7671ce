"""`osrm merge --method ties`: 8 adapters of rank 16 and width 4096, on 4 matrices, beside PEFT and mergekit.

As an adapter: a whole process less the time to start, PEFT in memory on one matrix, times 4. As a model: whole
processes on both sides, mergekit on the models that the adapters make.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks import inputs, merge, peft_merge, timing
from benchmarks.report import Row, Setting, script

if TYPE_CHECKING:
    from pathlib import Path

TASKS, RANK = 8, 16


def measure(setting: Setting) -> Iterator[Row]:
    width = 256 if setting.quick else 4096
    folder, matrices = setting.folder, len(inputs.PROJECTIONS)
    paths = inputs.save_adapters(folder / "adapters", TASKS, 1, width, RANK)
    words: list[str | Path] = [
        *paths,
        "--method",
        "ties",
        "--rank",
        str(RANK),
        "--out",
        folder / "out",
        "--overwrite",
        "-q",
    ]
    modules = ("osrm_cli.merging.output.merged_folder", "osrm_cli.models.devices")

    def above() -> float:
        start = timing.imports(*modules)
        return timing.osrm("merge", *words).seconds - start.seconds

    runs = {"ours": above, "peft": lambda: peft_merge.merge("ties_svd", TASKS, width, RANK)[0] * matrices}
    found = timing.in_turn(runs, setting.few)
    small = peft_merge.merge("ties_svd", TASKS, 256, RANK, 256)[1]
    error = peft_merge.distance(peft_merge.ours("ties", TASKS, 256, RANK), small)
    same = f"largest difference {error:.0e} of the largest entry, at width 256 before truncation"
    peer = f"PEFT ties_svd, one matrix times {matrices}"
    yield Row("`ties --rank 16`, as adapter", found["ours"], peer, found["peft"], 5, difference=same)
    yield merge.full_models(setting, "ties", "ties", {"density": 0.2}, 5)


if __name__ == "__main__":
    script("ties", measure, __doc__)
