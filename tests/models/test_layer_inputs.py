"""What collect sees, beside a loop that anybody could have written: one example at a time, no padding, plain hooks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from osrm_cli.errors import OsrmError
from osrm_cli.features import shards
from osrm_cli.features.collector import InputStatistics, describe_feature_layers
from osrm_cli.features.statistics.table import find_statistic
from osrm_cli.models.classifier import load_classifier, load_tokenizer
from osrm_cli.models.layer_inputs import find_shared_layer_inputs, record_layer_inputs
from osrm_cli.models.target_modules import default_target_modules, find_target_layers
from osrm_cli.models.token_batches import collate_batch, tokenize_for_classifier
from osrm_cli.tasks.task import Example
from tests.conftest import FAMILIES, WORDS

CPU = torch.device("cpu")
TARGETS = {"t5": ["q", "k", "v", "o"]}
LENGTH = 24
EXAMPLES = [
    Example((" ".join(WORDS[start : start + length]), other), None)
    for start, length, other in (
        (0, 3, "w1 w2"),
        (5, 9, "w3"),
        (11, 1, "w4 w5 w6"),
        (20, 30, "w7 w8"),
        (30, 5, "w9"),
        (40, 7, "w3 w1"),
    )
]

Tiny = Callable[[str], Path]


class Subject:
    """A tiny classifier, its targets, and its examples as tokens."""

    def __init__(self, folder: Path, names: list[str] | None) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.classifier = load_classifier(folder, 2, self.tokenizer, torch.float32, 0)
        self.model = self.classifier.model
        self.layers = find_target_layers(self.classifier, names or default_target_modules(self.model))
        self.encodings = tokenize_for_classifier(self.tokenizer, EXAMPLES, LENGTH)

    def collect(self, kind: str, batch_size: int = 4, order: list[int] | None = None, padded: bool = False) -> Any:
        total = InputStatistics(self.model, self.layers, [find_statistic(kind).load()], padded)
        order = order or list(range(len(self.encodings)))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            chosen = [self.encodings[row] for row in rows]
            total.add(collate_batch(chosen, self.tokenizer, CPU, pad_to=LENGTH if padded else None), rows)
        return total

    def naive(self, pad_to: int | None = None) -> dict[str, list[torch.Tensor]]:
        """Each layer's inputs, example by example, ``(tokens, d_in)``."""
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in self.layers}
        handles = [
            module.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0][0].double()))
            for name, module in self.layers.items()
        ]
        with torch.no_grad():
            for encoding in self.encodings:
                ids, mask = encoding["input_ids"].tolist(), encoding["attention_mask"].tolist()
                more = max(pad_to or 0, len(ids)) - len(ids)
                self.model(
                    input_ids=torch.tensor([ids + [self.tokenizer.pad_token_id] * more]),
                    attention_mask=torch.tensor([mask + [0] * more]),
                )
        for handle in handles:
            handle.remove()
        return seen


@pytest.fixture(scope="module")
def subject(tiny_model: Tiny) -> Callable[[str], Subject]:
    made: dict[str, Subject] = {}

    def make(family: str) -> Subject:
        if family not in made:
            made[family] = Subject(tiny_model(family), TARGETS.get(family))
        return made[family]

    return make


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, subject: Callable[[str], Subject]) -> Subject:
    return subject(str(request.param))


def check(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found.double() - expected).norm() <= 1e-6 * expected.norm()


def layers_of(total: Any) -> dict[str, dict[str, Any]]:
    return describe_feature_layers(total.targets, total.inputs)


def finalized(sums: Any, kinds: list[str]) -> dict[str, torch.Tensor]:
    return dict(shards.finalized_statistics(sums, kinds))


def entry(total: Any, kind: str, layer: str) -> torch.Tensor:
    return finalized(total.sums, [kind])[f"{total.inputs.sources[layer]}.{kind}"]


def test_mean_is_that_of_a_naive_loop(family: Subject) -> None:
    total = family.collect("mean")
    for layer, inputs in family.naive().items():
        check(entry(total, "mean", layer), torch.cat(inputs).mean(0))
    assert total.tokens == sum(len(encoding["input_ids"]) for encoding in family.encodings)
    assert total.examples == len(EXAMPLES)


def test_second_moment_and_samples_are_those_of_a_naive_loop(family: Subject) -> None:
    moments, samples = family.collect("second-moment"), family.collect("samples", order=[3, 1, 5, 0, 4, 2])
    for layer, inputs in family.naive().items():
        tokens = torch.cat(inputs)
        check(entry(moments, "second-moment", layer), tokens.T @ tokens / len(tokens))
        check(entry(samples, "samples", layer), torch.stack([one.mean(0) for one in inputs]))


def test_padded_pooling_is_the_mean_of_all_positions(family: Subject) -> None:
    """The published code pads to the maximum length, masks nothing, and takes one example at a time."""
    total = family.collect("mean", padded=True)
    for layer, inputs in family.naive(pad_to=LENGTH).items():
        assert all(len(one) == LENGTH for one in inputs)
        check(entry(total, "mean", layer), torch.cat(inputs).mean(0))
    assert total.tokens == LENGTH * len(EXAMPLES)


def test_batch_size_and_order_change_nothing(family: Subject) -> None:
    expected = finalized(family.collect("second-moment", batch_size=6).sums, ["c"])
    for batch_size, order in ((1, [5, 4, 3, 2, 1, 0]), (2, [3, 0, 5, 1, 4, 2]), (5, [0, 1, 2, 3, 4, 5])):
        found = finalized(family.collect("second-moment", batch_size, order).sums, ["c"])
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            check(tensor, expected[name].double())


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_saved_padding_side_changes_nothing(tiny_model: Tiny, tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    found = []
    for side in ("left", "right"):
        folder = tmp_path / side
        folder.mkdir()
        for path in tiny_model(name).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.padding_side = side
        tokenizer.save_pretrained(folder)
        assert f'"padding_side": "{side}"' in (folder / "tokenizer_config.json").read_text()
        found.append(finalized(Subject(folder, None).collect("mean").sums, ["mean"]))
    for key, tensor in found[0].items():
        assert torch.equal(tensor, found[1][key])


@pytest.mark.parametrize(
    ("name", "names", "shared"),
    [
        ("bert", ["query", "key", "value", "dense"], {"query", "key", "value"}),
        ("roberta", ["query", "key", "value"], {"query", "key", "value"}),
        ("llama", ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"], {"q_proj", "k_proj", "v_proj"}),
    ],
)
def test_layers_with_one_input_share_one_entry(tiny_model: Tiny, name: str, names: list[str], shared: set[str]) -> None:
    subject = Subject(tiny_model(name), names)
    total = subject.collect("mean")
    inputs = subject.naive()
    for layer, facts in layers_of(total).items():
        first, source = inputs[layer], inputs[facts["source"]]
        assert all(torch.equal(a, b) for a, b in zip(first, source, strict=True))
    for number in range(2):
        group = {
            f["source"] for n, f in layers_of(total).items() if f".{number}." in n and n.rpartition(".")[2] in shared
        }
        assert len(group) == 1
    assert len(finalized(total.sums, ["mean"])) == len({facts["source"] for facts in layers_of(total).values()})
    assert list(layers_of(total)) == list(subject.layers)  # the model's order


def test_decoder_of_t5_is_read_and_its_cross_attention_sees_the_encoder(subject: Callable[[str], Subject]) -> None:
    total = subject("t5").collect("mean")
    sources = {name: facts["source"] for name, facts in layers_of(total).items()}
    cross = {sources[name] for name in sources if "EncDecAttention.k" in name or "EncDecAttention.v" in name}
    assert len(cross) == 1  # the encoder's output, for every block of the decoder
    queries = {sources[name] for name in sources if "EncDecAttention.q" in name}
    assert len(queries) == 2
    assert not queries & cross
    assert sum(name.startswith("transformer.decoder") for name in sources) == 2 * 8


def test_nothing_past_the_last_target_layer_runs(subject: Callable[[str], Subject]) -> None:
    bert = subject("bert")
    calls = {"before": 0, "after": 0}

    def count(key: str) -> Callable[..., None]:
        def see(*_: Any) -> None:
            calls[key] += 1

        return see

    first, last = bert.model.bert.encoder.layer
    handles = [first.register_forward_hook(count("before")), last.attention.self.register_forward_hook(count("after"))]
    total = bert.collect("mean", batch_size=2)
    for handle in handles:
        handle.remove()
    assert calls == {"before": 4, "after": 1}  # one whole pass finds the inputs, three batches stop early
    assert total.examples == len(EXAMPLES)


def test_layer_that_runs_twice_is_seen_twice() -> None:
    """As in ALBERT, whose blocks share their weights."""

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(9, 4)
            self.block = torch.nn.Linear(4, 4)
            self.late = torch.nn.Linear(4, 4)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            x: torch.Tensor = self.embed(input_ids)
            for _ in range(3):
                x = self.block(x).tanh()
            return self.late(x)  # type: ignore[no-any-return]

    model: Any = Twice()
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3)}
    found: list[torch.Tensor] = []
    inputs = find_shared_layer_inputs(model, {"block": model.block}, batch)
    assert inputs.calls == {"block": 3}
    record_layer_inputs(model, {"block": model.block}, inputs, batch, lambda name, x, mask: found.append(x))
    assert len(found) == 3
    torch.testing.assert_close(found[2], model.block(found[1].clone()).tanh())


def test_no_hook_is_left_behind(family: Subject) -> None:
    family.collect("mean")
    assert not any(module._forward_pre_hooks for module in family.layers.values())


def test_memory_does_not_grow_with_the_examples(subject: Callable[[str], Subject]) -> None:
    bert = subject("bert")

    def held(total: Any) -> int:
        return sum(t.numel() for sums in total.sums.values() for one in sums for t in one.state().values())

    for kind in ("mean", "second-moment"):
        assert held(bert.collect(kind, order=[0])) == held(bert.collect(kind, order=[0, 1, 2, 3, 4, 5] * 3))


def test_layer_that_takes_no_part_is_named(subject: Callable[[str], Subject]) -> None:
    bert = subject("bert")
    idle = {"idle": torch.nn.Linear(16, 16)}
    total = InputStatistics(bert.model, {**bert.layers, **idle}, [find_statistic("mean").load()])
    with pytest.raises(OsrmError, match="target layer idle takes no part"):
        total.add(collate_batch(bert.encodings[:1], bert.tokenizer, CPU), [0])


def test_layer_behind_the_pooler_is_averaged_over_examples(tiny_model: Tiny) -> None:
    subject = Subject(tiny_model("bert"), ["bert.pooler.dense"])
    found = finalized(subject.collect("mean").sums, ["mean"])["bert.pooler.dense.mean"]
    inputs = subject.naive()["bert.pooler.dense"]  # (d_in,) for each example
    check(found, torch.stack(inputs).mean(0))
