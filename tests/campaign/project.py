"""A small project with every kind of artifact, and the commands that read each kind."""

import csv
import gzip
import io
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.campaign.forked import run_forked

WORDS = [f"w{i}" for i in range(60)] + ["good", "bad", "fine", "poor"]
ADAPTERS = "adapters/mood adapters/pair adapters/score"
WRITERS = "writers/echo writers/last"
_WORDS = "--model writer --data words"
_TASKS = "--task mood --task pair --task score"
_COMMANDS = (
    f"collect {_TASKS} --samples 20 --statistic mean --statistic second-moment --statistic samples",
    f"collect {_TASKS} --samples 20 --statistic sketch:4 --statistic gradient --out features-more",
    f"collect {_TASKS} --samples 20 --shard 1/2 --out shards",
    f"collect {_TASKS} --samples 20 --shard 2/2 --out shards",
    "init --each --objective osrm --rank 2",
    "train starts/mood starts/pair starts/score --epochs 1 --lr 0.01",
    f"merge {ADAPTERS} --lambda 0.5",
    f"merge {ADAPTERS} --method emr --out merged-emr",
    f"merge {ADAPTERS} --as model --out merged-model",
    f"merge {ADAPTERS} --method ties --density 0.5 --out merged-ties",
    "eval merged --predictions",
    "eval merged-emr --predictions",
    "eval merged-model --predictions",
    f"sweep {ADAPTERS} --lambda 0.1,0.5 --method task-arith --method ties --density 0.3 --predictions",
    f"diagnose features {ADAPTERS}",
    "calibrate merged --samples 20",
    f"collect {_WORDS} --samples 16 --out writers-features",
    "init --each --rank 2 --features writers-features --out writers-starts",
    f"train writers-starts/echo writers-starts/last --epochs 1 --lr 0.01 {_WORDS} --out writers",
    f"merge {WRITERS} --lambda 0.5 --out writers-merged",
    f"eval writers-merged {_WORDS}",
)


def build_project(root: Path) -> None:
    """Make the project; ``root`` appears when it is whole."""
    stage = root.with_name(f"{root.name}.new")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    _save_base_models(stage)
    _save_data(stage / "data")
    (stage / "osrm.toml").write_text(
        'model = "base"\ndata = "data"\nquiet = true\n\n[train]\nepochs = 1\n\n[merge]\nlambda = 0.5\n'
    )
    for command in _COMMANDS:
        _run(command, stage)
    _save_variants(stage)
    _leave_a_run_unfinished(stage)
    for log in stage.glob(".log*"):
        log.unlink()
    stage.rename(root)


def _run(command: str, root: Path) -> None:
    outcome = run_forked(command.split(), root, root / ".log")
    if outcome.code != 0:
        raise RuntimeError(f"osrm {command}: {outcome}")


def _save_base_models(root: Path) -> None:
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    words = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    inputs = ["input_ids", "attention_mask"]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=256, pad_token_id=0, **sizes)
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    for name, size in (("base", "5GB"), ("base-sharded", "20KB")):
        fast.save_pretrained(root / name)
        model.save_pretrained(root / name, max_shard_size=size)
    sizes |= {"num_key_value_heads": 1}
    config = transformers.LlamaConfig(vocab_size=len(words), bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes)
    fast.save_pretrained(root / "writer")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(root / "writer")
    few = {"num_local_experts": 2, "num_experts_per_tok": 1}
    config = transformers.MixtralConfig(vocab_size=len(words), bos_token_id=1, eos_token_id=2, **sizes, **few)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(root / "experts")


def _save_data(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choice(WORDS[:60]) for _ in range(draw.randint(2, 12)))

    for task in ("mood", "pair", "score", "parq", "parz", "tabs", "arr"):
        (folder / task).mkdir(parents=True)
    for split, size in (("train", 48), ("dev", 24)):
        single = [{"text": f"{text()} {w}", "label": int(w == "good")} for w in draw.choices(["good", "bad"], k=size)]
        pair = [{"a": text(), "b": text(), "label": draw.choice(["yes", "no", "maybe"])} for _ in range(size)]
        score = [{"text": text(), "label": round(draw.uniform(0, 5), 2)} for _ in range(size)]
        (folder / f"mood/{split}.jsonl").write_text(_lines(single))
        with (folder / f"pair/{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["a", "b", "label"])
            writer.writeheader()
            writer.writerows(pair)
        (folder / f"score/{split}.jsonl.gz").write_bytes(gzip.compress(_lines(score).encode(), mtime=0))
        table = pa.Table.from_pylist(single)
        pq.write_table(table, folder / f"parq/{split}.parquet")
        sink = io.BytesIO()
        pq.write_table(table, sink)
        (folder / f"parz/{split}.parquet.gz").write_bytes(gzip.compress(sink.getvalue(), mtime=0))
        rows = "".join(f"{row['text']}\t{row['label']}\n" for row in single)
        (folder / f"tabs/{split}.tsv").write_text(f"text\tlabel\n{rows}")
        (folder / f"arr/{split}.json").write_text(json.dumps(single, indent=1))
    for task, choose in (("echo", lambda words: words), ("last", lambda words: words[-1:])):
        (folder.parent / "words" / task).mkdir(parents=True)
        for split, size in (("train", 24), ("dev", 8)):
            rows = [text().split()[:6] for _ in range(size)]
            pairs = [{"prompt": " ".join(row) + " w0", "completion": " " + " ".join(choose(row))} for row in rows]
            (folder.parent / f"words/{task}/{split}.jsonl").write_text(_lines(pairs))
    (folder.parent / "words/last/task.toml").write_text('kind = "generation"\nmax_new_tokens = 4\nstop = ["w9"]\n')
    (folder / "mood/task.toml").write_text(
        'columns = ["text"]\nlabel_column = "label"\nlabels = [0, 1]\nmetrics = ["accuracy", "f1"]\nmax_length = 32\n'
    )


def _save_beside_factors(root: Path) -> None:
    """Adapters of other programs: one with rows of the embedding, two of stacked experts."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    rows = {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 9]}}
    experts = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
    adapters = {"rows/echo": ("writer", rows), "stacked/one": ("experts", experts), "stacked/two": ("experts", experts)}
    for seed, (folder, (base, settings)) in enumerate(adapters.items()):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_pretrained(root / base)
        peft_model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, **settings))
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name or "trainable_tokens_delta" in name:
                parameter.data = torch.randn(parameter.shape) * 0.1
        peft_model.save_pretrained(root / folder)
        path = root / folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": base}))
        (root / folder / "README.md").unlink()


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _save_variants(root: Path) -> None:
    """An adapter in two files with an index, one of another program, and recipes."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(root / "adapters/mood/adapter_model.safetensors")
    folder = root / "indexed/mood"
    folder.mkdir(parents=True)
    names, weight_map = sorted(tensors), {}
    for part, chosen in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"adapter_model-0000{part}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(chosen, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("adapter_config.json", "osrm.json", "training.json"):
        shutil.copy(root / "adapters/mood" / name, folder / name)
    shutil.copytree(root / "adapters/pair", root / "foreign/other")
    for name in ("osrm.json", "training.json"):
        (root / "foreign/other" / name).unlink()
    _save_without_head(root)
    _save_beside_factors(root)
    (root / "recipes").mkdir()
    (root / "recipes/ours.yaml").write_text(
        "method: ties\nadapters:\n  - path: adapters/mood\n    weight: 0.7\n  - path: adapters/pair\n"
        "    weight: [0.2, 1.0]\n  - path: adapters/score\n    weight: {query: 0.5, value: [0, 1]}\n"
        "options: {lambda: 0.3, density: 0.5, rank: 3}\nas: adapter\ndtype: float32\n"
    )
    (root / "recipes/mergekit.yaml").write_text(
        "merge_method: task_arithmetic\nbase_model: base\nmodels:\n  - model: base+adapters/mood\n    parameters:\n"
        "      weight: 0.5\n  - model: base+adapters/pair\n    parameters:\n      weight:\n"
        "        - filter: query\n          value: [0.1, 0.9]\n        - value: 1.0\n"
        "parameters:\n  normalize: false\n  lambda: 0.8\ndtype: float32\n"
    )


def _save_without_head(root: Path) -> None:
    """An adapter of attention alone, as it is and in three other programs' formats."""
    from safetensors.torch import load_file, save_file

    folder = root / "plain/mood"
    folder.mkdir(parents=True)
    tensors = load_file(root / "adapters/mood/adapter_model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "lora_" in name}
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((root / "adapters/mood/adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": None, "task_type": None}))
    _run("convert plain/mood plain/mlx --format mlx", root)
    _run("convert plain/mood plain/diffusers.safetensors --format diffusers --component text_encoder", root)
    layer = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    (down, *_), (up, *_) = ([t for name, t in kept.items() if f"lora_{factor}" in name] for factor in "AB")
    factors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": down.new_tensor(2.0)}
    save_file({f"{layer}.{name}": tensor for name, tensor in factors.items()}, root / "plain/kohya.safetensors")


def _leave_a_run_unfinished(root: Path) -> None:
    """A training of three epochs that ends with its process, after the second checkpoint."""
    pid = os.fork()
    if pid == 0:
        from osrm_cli.cli.app import main
        from osrm_cli.training.trainer import TrainingMonitor

        os.chdir(root)
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - the process ends
        on_epoch_end, epochs = TrainingMonitor.on_epoch_end, []

        def end_in_the_third(self: TrainingMonitor, *args: Any, **more: Any) -> None:
            on_epoch_end(self, *args, **more)
            epochs.append(1)
            if len(epochs) == 3:
                os._exit(0)

        TrainingMonitor.on_epoch_end = end_in_the_third  # type: ignore[method-assign]
        sys.argv = ["osrm", "train", "starts/mood", "--epochs", "3", "--lr", "0.01", "--out", "unfinished"]
        main()
    os.waitpid(pid, 0)
    if not list((root / "unfinished/.mood.training").glob("checkpoint-*")):
        raise RuntimeError("no unfinished run")
