"""`osrm eval` and `osrm sweep` on 8 merged tasks of MiniLM, whole processes, beside Trainer and separate runs."""

import json
from collections.abc import Iterator

from benchmarks import inputs, timing
from benchmarks.report import Row, Setting, script

TRIED = 2  # of the ten lambdas, in separate runs; each costs the same


def measure(setting: Setting) -> Iterator[Row]:
    folder, place = setting.folder, inputs.model()
    tasks, dev = (2, 8) if setting.quick else (None, 64)
    names = inputs.pipeline(folder, setting.data, 32, dev, tasks)
    adapters = [f"adapters/{name}" for name in names]
    lambdas = [f"{0.1 * step:.1f}" for step in range(1, 11)]

    def merge(scale: str) -> timing.Cost:
        return timing.osrm("merge", *adapters, "--lambda", scale, "--overwrite", "-q", cwd=folder)

    def evaluate() -> timing.Cost:
        return timing.osrm("eval", "--no-single", "--overwrite", "-q", cwd=folder)

    def separate() -> float:
        once = sum(merge(scale).seconds + evaluate().seconds for scale in lambdas[-TRIED:])
        return once * len(lambdas) / TRIED

    merge("0.3")
    found = timing.in_turn(
        {
            "ours": evaluate,
            "trainer": lambda: timing.peer("trainer_evaluate", place, folder / "data", "merged", "t.json", cwd=folder),
        },
        setting.repeats,
    )
    ours = json.loads((folder / "merged" / "scores.json").read_text(encoding="utf-8"))["tasks"]
    theirs = json.loads((folder / "t.json").read_text(encoding="utf-8"))
    worst = max(abs(ours[t]["metrics"][m] - value) for t, row in theirs.items() for m, value in row.items())
    what = f"eval, {len(names)} tasks x {dev} examples"
    peer = "Trainer.evaluate, padded to 128"
    yield Row(what, found["ours"], peer, found["trainer"], 3, "faster", difference=f"metrics differ by {worst:.2g}")

    found = timing.in_turn(
        {
            "ours": lambda: timing.osrm("sweep", *adapters, "--lambda", "0.1:1.0:0.1", "--overwrite", "-q", cwd=folder),
            "separate": separate,
        },
        setting.few,
    )
    what = f"sweep, 10 lambdas x {len(names)} tasks"
    yield Row(what, found["ours"], f"merge and eval, {TRIED} of 10", found["separate"], 3, "faster")


if __name__ == "__main__":
    script("evaluate", measure, __doc__)
