"""`osrm collect` on 8 tasks x 1,000 samples of all-mpnet-base-v2 (109M) and SmolLM2-135M, imports apart.

For each task a process of its own, warm after a few examples: a bare forward pass, our means and second moments, both
over every eighth batch of the same, and the published loop on 4 examples, scaled to as many. The first two load the
model and tokenize all 1,000. all-mpnet-base-v2 is looked for in `models/mpnet`, see `config/glue-mpnet.yaml`.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks import inputs, timing
from benchmarks.peers.collect_beside import LENGTH
from benchmarks.report import Row, Setting, script
from osrm_cli.errors import OsrmError
from osrm_cli.models.base_model import find_base_model

SHARE = 8
MODELS = {"all-mpnet-base-v2": "models/mpnet", "SmolLM2-135M": "smollm2"}


def measure(setting: Setting) -> Iterator[Row]:
    samples = 8 if setting.quick else 1000
    tasks = inputs.save_tasks(setting.folder / "data", setting.data, samples, 1, 1 if setting.quick else None)
    for name, place in MODELS.items():
        what = f"means and second moments, {name}, {len(tasks)} x {samples:,}"
        try:
            model = find_base_model(place)
        except OsrmError:
            yield Row(what, [0.0], f"{place} is missing")
            continue
        found = [_of_task(setting, model, task) for task in tasks]
        ours, bare, loop = ([sum(each[key] for each in found)] for key in ("ours", "bare", "loop"))
        examples, tokens = (sum(each[key] for each in found) for key in ("examples", "tokens"))
        same = f"{examples:,.0f} examples, {tokens:,.0f} tokens"
        yield Row(what, ours, "bare forward pass", bare, 1.1, "within", difference=f"{same}, the same batches")
        padded = f"{same}; padded {examples * LENGTH:,.0f}"
        yield Row(what, ours, "published loop, scaled", loop, 8, "faster", difference=padded)


def _of_task(setting: Setting, model: Path, task: str) -> dict[str, float]:
    out = setting.folder / "figures.json"
    timing.peer("collect_beside", model, setting.folder / "data", task, str(SHARE), out)
    figures: dict[str, float] = json.loads(out.read_text(encoding="utf-8"))
    return figures


if __name__ == "__main__":
    script("collect_large", measure, __doc__)
