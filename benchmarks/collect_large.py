"""`osrm collect` on 8 tasks x 1,000 samples of all-mpnet-base-v2 (109M) and SmolLM2-135M, imports apart.

One warm process, task by task, loading the model each time: a bare forward pass, our means and second moments, both
over the first batch and over every sixteenth of the same, from which the time of all is told by their tokens, and the
published loop on 4 examples, scaled to all. Seconds are of processor time. all-mpnet-base-v2 is looked for in
`models/mpnet`, see `config/glue-mpnet.yaml`; the rows of a model that is missing stay as they are stored.
"""

import json
from collections.abc import Iterator

from benchmarks import inputs, timing
from benchmarks.peers.collect_beside import LENGTH
from benchmarks.report import Row, Setting, load, script
from osrm_cli.errors import OsrmError
from osrm_cli.models.base_model import find_base_model

SHARE = 16
MODELS = {"all-mpnet-base-v2": "models/mpnet", "SmolLM2-135M": "smollm2"}


def measure(setting: Setting) -> Iterator[Row]:
    samples = 8 if setting.quick else 1000
    tasks = inputs.save_tasks(setting.folder / "data", setting.data, samples, 1, 1 if setting.quick else None)
    for name, place in MODELS.items():
        named = len(tasks) if len(tasks) > 4 else ", ".join(tasks)
        what = f"means and second moments, {name}, {named} x {samples:,}"
        try:
            model = find_base_model(place)
        except OsrmError:
            stored = [row for row in load("collect_large") if f" {name}," in row.what]
            yield from stored or [Row(what, [0.0], f"{place} is missing")]
            continue
        out = setting.folder / "figures.json"
        timing.peer("collect_beside", model, setting.folder / "data", str(SHARE), out)
        found: dict[str, float] = json.loads(out.read_text(encoding="utf-8"))
        ours, bare, loop = ([found[key]] for key in ("ours", "bare", "loop"))
        examples, tokens = found["examples"], found["tokens"]
        same = f"{examples:,.0f} examples, {tokens:,.0f} tokens"
        yield Row(what, ours, "bare forward pass", bare, 1.1, "within", difference=f"{same}, the same batches")
        padded = f"{same}; padded {examples * LENGTH:,.0f}"
        yield Row(what, ours, "published loop, scaled", loop, 8, "faster", difference=padded)


if __name__ == "__main__":
    script("collect_large", measure, __doc__)
