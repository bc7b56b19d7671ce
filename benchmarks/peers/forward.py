"""A bare forward pass over the same tokens in the same batches: what no collection of features can beat.

Called as ``python -m benchmarks.peers.forward MODEL DATA``.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.peers import texts
from osrm_cli.models.token_batches import collate_batch, group_by_length, tokenize_for_classifier


def main() -> None:
    place, data = map(Path, sys.argv[1:])
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForSequenceClassification.from_pretrained(place).eval()
    for examples in texts.read(data).values():
        encodings = tokenize_for_classifier(tokenizer, examples.examples, 128)
        with torch.inference_mode():
            for plan in group_by_length([len(encoding["input_ids"]) for encoding in encodings], 32):
                model(**collate_batch([encodings[index] for index in plan], tokenizer, torch.device("cpu")))


if __name__ == "__main__":
    main()
