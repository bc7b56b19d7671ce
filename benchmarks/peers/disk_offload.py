"""A decoder whose weights transformers and accelerate leave on disk: their hooks read every weight for every batch.

Called as ``python -m benchmarks.peers.disk_offload MODEL ROWS BATCH_SIZE``.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    place, rows, batch_size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    tokenizer = AutoTokenizer.from_pretrained(place, padding_side="right")
    model = AutoModelForCausalLM.from_pretrained(
        place, dtype=torch.float32, device_map={"": "disk"}, offload_folder="offloaded"
    )
    texts = [row["prompt"] + row["completion"] for row in map(json.loads, rows.read_text("utf-8").splitlines())]
    with torch.inference_mode():
        for start in range(0, len(texts), batch_size):
            batch = tokenizer(texts[start : start + batch_size], return_tensors="pt", padding=True)
            model.model(**batch, use_cache=False)  # without the output layer


if __name__ == "__main__":
    main()
