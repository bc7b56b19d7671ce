"""One task's features in one warm process: a bare forward pass, ours, and the published loop on a few examples.

Called as ``python -m benchmarks.peers.collect_beside MODEL DATA TASK SHARE OUT``: of SHARE batches one is run. OUT gets
seconds and tokens as JSON.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.peers.published_loop import Watched, features
from osrm_cli.features.collect import collect_features
from osrm_cli.models.batching import collate_batch, group_by_length, tokenize_examples
from osrm_cli.models.classifier import load_classifier, load_tokenizer
from osrm_cli.tasks.loading import load_split
from osrm_cli.tasks.task import TaskSplit

FEW, LENGTH, BATCH_SIZE = 4, 128, 32


def forward(model: Path, examples: TaskSplit, share: int = 1) -> tuple[int, int]:
    """A bare pass over a share of the batches that ``collect`` makes: its examples, and their tokens."""
    tokenizer = load_tokenizer(model)
    network = load_classifier(model, 1, tokenizer, torch.float32, 0).model.eval()
    network.config.use_cache = False
    encodings = tokenize_examples(tokenizer, examples.examples, LENGTH)
    lengths = [len(encoding["input_ids"]) for encoding in encodings]
    batches = group_by_length(lengths, BATCH_SIZE)[::share]
    with torch.inference_mode():
        for rows in batches:
            network(**collate_batch([encodings[row] for row in rows], tokenizer, torch.device("cpu")))
    return sum(map(len, batches)), sum(lengths[row] for rows in batches for row in rows)


def loop(model: Path, examples: TaskSplit) -> float:
    """Seconds of the published loop for one example, the mean of a few; the model is loaded before."""
    tokenizer = load_tokenizer(model)
    network = load_classifier(model, 1, tokenizer, torch.float32, 0).model.eval()
    watched = Watched(network)
    few = replace(examples, examples=examples.examples[:FEW])
    return _seconds(lambda: features(network, tokenizer, watched, few)) / len(few.examples)


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    place, data, task, share, out = sys.argv[1:]
    model, examples = Path(place), load_split(task, data, "train")
    with tempfile.TemporaryDirectory() as folder:

        def ours(samples: int) -> None:
            part = f"1/{share}" if samples > FEW else None
            collect_features([task], data, model=place, samples=samples, shard=part, out=folder, overwrite=True)

        forward(model, replace(examples, examples=examples.examples[:FEW]))  # both are warm after a few
        ours(FEW)
        found: dict[str, float] = {}
        start = time.perf_counter()
        found["examples"], found["tokens"] = forward(model, examples, int(share))
        found["bare"] = time.perf_counter() - start
        found["ours"] = _seconds(lambda: ours(len(examples.examples)))
    found["loop"] = loop(model, examples) * found["examples"]
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
