"""Adapters that have trained rows of the embedding, on small models, and what PEFT computes with them."""

import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig

IDS = torch.arange(40).reshape(4, 10)
SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
MODELS = {"CAUSAL_LM": AutoModelForCausalLM, "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM}


def save_base(folder, is_tied=False):
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=is_tied)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def load_base(base, grown=0, kind="CAUSAL_LM"):
    model = MODELS[kind].from_pretrained(base).eval()
    if grown:
        model.resize_token_embeddings(40 + grown, mean_resizing=False)
        torch.manual_seed(5)
        model.get_input_embeddings().weight.data[40:] = torch.randn(grown, 16)
    return model


def save_adapter(folder, base, tokens, seed=1, targets=("q_proj",), grown=0, kind="CAUSAL_LM"):
    """The adapter's logits. Rows depend on ``tokens`` alone, factors on ``seed``."""
    config = LoraConfig(task_type=kind, r=2, target_modules=list(targets), trainable_token_indices=tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter = get_peft_model(load_base(base, grown, kind), config)
        rows, factors = torch.Generator().manual_seed(9), torch.Generator().manual_seed(seed)
        for name, parameter in adapter.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.data = torch.randn(parameter.shape, generator=rows) * 0.3
            elif "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=factors) * 0.2
        adapter.save_pretrained(str(folder))
    return logits(adapter, kind)


def logits(model, kind="CAUSAL_LM"):
    with torch.no_grad():
        return model.eval()(IDS, **({"decoder_input_ids": IDS} if kind == "SEQ_2_SEQ_LM" else {})).logits


def load(base, folder, grown=0, kind="CAUSAL_LM"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load_base(base, grown, kind), str(folder))


CASES = {
    "list": {"tokens": [7, 3]},
    "name": {"tokens": {"embed_tokens": [39]}},
    "output layer": {"tokens": {"lm_head": [4, 5]}},
    "both alike": {"tokens": {"embed_tokens": [3], "lm_head": [3]}},
    "both": {"tokens": {"embed_tokens": [3], "lm_head": [4, 9]}},
    "adapted output layer": {"tokens": [3, 7], "targets": ["q_proj", "lm_head"]},
    "grown": {"tokens": [3, 41], "grown": 2},
}
