"""PEFT's EVA on every task's text: its hooks take an incremental SVD of what each target layer is fed with.

Called as ``python -m benchmarks.peers.eva MODEL DATA OUT``.
"""

import sys
import warnings
from pathlib import Path

from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from benchmarks.peers import texts
from osrm_cli.models.token_batches import tokenize_for_classifier


def main() -> None:
    place, data, out = map(Path, sys.argv[1:])
    warnings.simplefilter("ignore")
    tokenizer = AutoTokenizer.from_pretrained(place)
    pad = DataCollatorWithPadding(tokenizer)
    out.mkdir()
    for name, examples in texts.read(data).items():
        model = AutoModelForSequenceClassification.from_pretrained(place).eval()
        config = LoraConfig(
            r=8, target_modules=["query", "value"], init_lora_weights="eva", eva_config=EvaConfig(rho=1.0)
        )
        adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
        encodings = tokenize_for_classifier(tokenizer, examples.examples, 128)
        loader = DataLoader(encodings, batch_size=32, collate_fn=lambda rows: dict(pad(rows)))
        initialize_lora_eva_weights(adapted, loader, show_progress_bar=False)
        rows = {key: value.detach().clone() for key, value in adapted.named_parameters() if "lora_A" in key}
        save_file(rows, out / f"{name}.safetensors")


if __name__ == "__main__":
    main()
