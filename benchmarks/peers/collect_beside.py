"""Features of all tasks in one warm process: a bare forward pass, ours, and the published loop on a few examples.

Called as ``python -m benchmarks.peers.collect_beside MODEL DATA SHARE OUT``: of SHARE batches one is run, and what the
others would take is told from their tokens and from a run of the first batch alone. OUT gets seconds of processor time
and counts as JSON.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.peers import texts
from benchmarks.peers.published_loop import Watched, features
from osrm_cli.features.collect import collect_features
from osrm_cli.models.classifier import load_classifier, load_tokenizer
from osrm_cli.models.token_batches import collate_batch, group_by_length, tokenize_for_classifier
from osrm_cli.tasks.task import TaskSplit

FEW, LENGTH, BATCH_SIZE = 4, 128, 32
CPU = torch.device("cpu")


def forward(
    model: Path, examples: TaskSplit, share: int, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> None:
    """A bare pass over a share of the batches that ``collect`` makes."""
    tokenizer = load_tokenizer(model)
    network = load_classifier(model, 1, tokenizer, dtype, 0).model.eval().to(device)
    network.config.use_cache = False
    encodings = tokenize_for_classifier(tokenizer, examples.examples, LENGTH)
    lengths = [len(encoding["input_ids"]) for encoding in encodings]
    batches = group_by_length(lengths, BATCH_SIZE)
    with torch.inference_mode():
        for rows in batches[::share]:
            network(**collate_batch([encodings[row] for row in rows], tokenizer, device))


def count_tokens(model: Path, examples: TaskSplit, share: int) -> tuple[int, int, int]:
    """Tokens of all batches, of the share, and of the first."""
    lengths = [
        len(each["input_ids"]) for each in tokenize_for_classifier(load_tokenizer(model), examples.examples, LENGTH)
    ]
    tokens = [sum(lengths[row] for row in rows) for rows in group_by_length(lengths, BATCH_SIZE)]
    return sum(tokens), sum(tokens[::share]), tokens[0]


def loop(model: Path, examples: TaskSplit) -> float:
    """Seconds of the published loop for one example, the mean of a few; the model is loaded before."""
    tokenizer = load_tokenizer(model)
    network = load_classifier(model, 1, tokenizer, torch.float32, 0).model.eval()
    watched = Watched(network)
    few = replace(examples, examples=examples.examples[:FEW])
    return _seconds(lambda: features(network, tokenizer, watched, few)) / len(few.examples)


def _seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    place, data, share, out = sys.argv[1:]
    model, found, warm, one = Path(place), Counter[str](), False, 99_999
    for name, examples in texts.read(Path(data)).items():
        with tempfile.TemporaryDirectory() as folder:

            def bare(part: int, examples: TaskSplit = examples) -> None:
                forward(model, examples, part)

            def ours(part: int, name: str = name, folder: str = folder, count: int = len(examples.examples)) -> None:
                given = {"model": place, "samples": count, "shard": f"1/{part}"}
                collect_features([name], data, **given, out=folder, overwrite=True)

            if not warm:
                bare(one)
                ours(one)
                warm = True
            every, read, first = count_tokens(model, examples, int(share))
            for key, run in (("bare", bare), ("ours", ours)):
                start, part = _seconds(partial(run, one)), _seconds(partial(run, int(share)))
                found[key] += start + (part - start) * (every - first) / max(read - first, 1)
        found["loop"] += loop(model, examples) * len(examples.examples)
        found["examples"] += len(examples.examples)
        found["tokens"] += every
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
