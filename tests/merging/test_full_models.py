"""Full models merged as they are: against dense formulas, against the same differences as factors; refusals."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from osrm_cli import extract_adapter, merge_adapters
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.row_stream import RowStream
from osrm_cli.merging.methods import METHODS, find_method
from osrm_cli.merging.methods.layer_updates import LayerUpdates
from osrm_cli.merging.methods.options import MethodOptions
from osrm_cli.tasks.loading import draw_examples, load_split
from tests import factories
from tests.extraction.full_models import save_classifiers, text_logits, tune, weights, writer
from tests.run_cli import listing, osrm, process

DENSE = [row for row in METHODS if row.takes_full_models]
ADAPTERS_ONLY = [row.name for row in METHODS if not row.takes_full_models]
SHAPES = [(12, 9), (9, 12), (1, 40), (30, 30)]


def everything(model, name):
    return True


# --- the rules ------------------------------------------------------------------------------------------------------


def updates(shape, seed=0, count=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def layer(deltas, **fields):
    names = tuple("abcdefgh"[: len(deltas)])
    return LayerUpdates("x", names, tuple(deltas), (1.0, 0.5, -0.7)[: len(deltas)], **fields)


def as_factors(W):
    """The same update as a product, whose first factor is the identity."""
    return LowRank(torch.eye(len(W), dtype=W.dtype), W)


def data(row, shape, count=3):
    generator = torch.Generator().manual_seed(9)
    rows = [torch.randn(50, shape[1], generator=generator, dtype=torch.float64) for _ in range(count)]
    moments = {"second_moments": tuple(X.T @ X / 50 for X in rows)} if "features" in row.needs else {}
    fisher = {"fisher": tuple(torch.rand(shape, generator=generator) for _ in range(count))}
    return {**moments, **(fisher if row.data_statistic == "fisher" else {})}


@pytest.mark.parametrize("row", DENSE, ids=lambda row: row.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_merge_like_factors(row, shape):
    count = 2 if row.name == "nearswap" else 3
    dense, rule = updates(shape, count=count), row.load()
    options = MethodOptions(density=0.4, rank=5 if row.name == "svd" else None, scale=0.6)
    fields = data(row, shape, count)
    expected = rule(layer([as_factors(W) for W in dense], **fields), options).dense()
    held = [W.clone() for W in dense]
    found = rule(layer([RowStream.of(W) for W in dense], **fields), options).dense()
    assert (found - expected).norm() <= 1e-6 * expected.norm()
    assert all(torch.equal(W, before) for W, before in zip(dense, held, strict=True))  # nothing is overwritten
    mixed = rule(layer([RowStream.of(dense[0]), *map(as_factors, dense[1:])], **fields), options).dense()
    assert (mixed - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("name", [*ADAPTERS_ONLY, "pico+ties"])
def test_methods_of_factors_refuse_before_anything_is_computed(tmp_path, name):
    save_classifiers(tmp_path, "bert", 1, 2)
    sources = [tmp_path / "tuned1", tmp_path / "tuned2"]
    message = "makes no single model" if find_method(name).is_task_aware else f"method {name} takes adapters alone"
    with pytest.raises(OsrmError, match=message.replace("+", r"\+")):
        merge_adapters(sources, name, model=str(tmp_path / "base"), out=tmp_path / "merged")


@pytest.mark.parametrize("name", ["core-ties", "pico", "cat-merging"])
def test_rules_of_factors_say_so(name):
    row = find_method(name)
    with pytest.raises(OsrmError, match="works on factors, a full model has none"):
        row.load()(layer([RowStream.of(W) for W in updates((5, 4))], **data(row, (5, 4))), MethodOptions())


def test_a_threshold_of_many_entries_is_exact():
    """Enough entries that thresholds begin with a sample of rows."""
    W = updates((700, 600), count=1)[0] * torch.linspace(0.01, 1, 700, dtype=torch.float64)[:, None]
    found = find_method("magnitude").load()(layer([RowStream.of(W)]), MethodOptions(density=0.1)).dense()
    bound = W.abs().flatten().topk(42_000).values[-1]
    assert torch.equal(found, torch.where(W.abs() >= bound, W, 0.0))


# --- merged models --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base model and two full models, every tensor changed."""
    folder = tmp_path_factory.mktemp("full")
    save_classifiers(folder, "bert", 1, 2, changes=everything)
    return folder


def merged(models, out, method, *sources, **settings):
    names = sources or ("tuned1", "tuned2")
    words = {"model": str(models / "base"), "out": out, **settings}
    return merge_adapters([models / name for name in names], method, **words)


def differences(models, *names):
    base = weights(models / "base")
    return base, [{n: weights(models / name)[f"bert.{n}"] - W for n, W in base.items()} for name in names]


def ties(stack, density):
    """TIES with its mean, from the paper."""
    kept = []
    for W in stack:
        count = max(int(density * W.numel()), 1)
        kept.append(torch.where(W.abs() >= W.abs().flatten().topk(count).values[-1], W, 0.0))
    x = torch.stack(kept)
    sign = x.sum(0).sign()
    agree = (x.sign() == sign) & (x != 0)
    return (x * agree).sum(0) / agree.sum(0).clamp_min(1)


def tsv(stack):
    """TSV-M, from the paper."""
    parts = [torch.linalg.svd(W, full_matrices=False) for W in stack]
    k = max(min(stack[0].shape) // len(stack), 1)
    U, S, V = (torch.cat(p, -1) for p in zip(*[(u[:, :k], s[:k], v[:k].T) for u, s, v in parts], strict=True))

    def polar(X):
        u, _, v = torch.linalg.svd(X, full_matrices=False)
        return u @ v

    return polar(U) * S @ polar(V).T


REFERENCES = {
    "task-arith": (lambda stack, is_layer: sum(stack), {}),
    "average": (lambda stack, is_layer: sum(stack) / len(stack), {}),
    "ties": (lambda stack, is_layer: ties(stack, 0.3), {"density": 0.3}),
    "tsv": (lambda stack, is_layer: tsv(stack) if is_layer else sum(stack) / len(stack), {}),
    "svd": (
        lambda stack, is_layer: (
            (lambda u, s, v: u[:, :3] * s[:3] @ v[:3])(*torch.linalg.svd(sum(stack), full_matrices=False))
            if is_layer
            else sum(stack)
        ),
        {"rank": 3},
    ),
}


@pytest.mark.parametrize("method", REFERENCES)
def test_merged_models_are_the_formulas(models, tmp_path, method):
    rule, options = REFERENCES[method]
    result = merged(models, tmp_path / "m", method, options={"lambda": 0.5, **options})
    base, tuned = differences(models, "tuned1", "tuned2")
    found = weights(tmp_path / "m")
    assert found.keys() == base.keys()
    for name, W in base.items():
        is_layer = W.ndim == 2 and "embeddings" not in name
        expected = W + 0.5 * rule([each[name] for each in tuned], is_layer)
        assert (found[name] - expected).norm() < 1e-6 * expected.norm(), name
    assert (result.summary["form"], result.summary["layers"]) == ("model", 19)
    assert result.summary["other_tensors"] == len(base) - 19
    assert "the result is a model" in result.notes[0]


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test_one_model_merged_alone_is_itself(tmp_path, family):
    (tuned,) = save_classifiers(tmp_path, family, 1, changes=everything)
    merge_adapters(
        [tmp_path / "tuned1"], "ties", options={"density": 1.0}, model=str(tmp_path / "base"), out=tmp_path / "m"
    )
    found, expected = weights(tmp_path / "m"), weights(tmp_path / "tuned1")
    prefix = f"{tuned.base_model_prefix}."
    for name, W in found.items():
        assert (expected[prefix + name] - W).norm() <= 1e-6 * W.norm(), name
    head = load_file(tmp_path / "m/tasks/tuned1/head.safetensors")
    assert all(torch.equal(tensor.double(), expected[name]) for name, tensor in head.items())
    assert head


def test_the_recipe_repeats_the_merge(models, tmp_path):
    merged(models, tmp_path / "m", "dare-ties", options={"density": 0.5, "seed": 3}, weights={"tuned1": 0.7})
    merge_adapters(recipe=tmp_path / "m/merge.yaml", out=tmp_path / "again")
    for name in ("model.safetensors", "merge.yaml"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def save_tasks(folder, base, family="bert"):
    """Full models of two of the small tasks, named after them."""
    for seed, task in enumerate(("mood", "score")):
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2 - seed)
        tune(model, seed, everything).save_pretrained(str(folder / task))


def test_regmean_reads_features_of_every_layer(tmp_path, text_tasks, tiny_model):
    base = tiny_model("bert")
    save_tasks(tmp_path, base)
    collect = ("collect", "--data", text_tasks, "--model", base, "--statistic", "second-moment", "--quiet")
    assert osrm(*collect, cwd=tmp_path).code == 0
    words = ("merge", "mood", "score", "--base", base, "-m", "regmean")
    assert "--target-modules all-linear" in osrm(*words, cwd=tmp_path).stderr
    assert osrm(*collect, "--target-modules", "all-linear", "--overwrite", cwd=tmp_path).code == 0
    run = osrm(*words, "--alpha", 1, cwd=tmp_path)
    assert run.code == 0, run
    found, old = weights(tmp_path / "merged"), weights(base)
    features = [load_file(tmp_path / f"features/{task}.safetensors") for task in ("mood", "score")]
    tuned = [weights(tmp_path / task) for task in ("mood", "score")]
    layer = "encoder.layer.0.output.dense"
    moments = [next(C for n, C in f.items() if f"bert.{layer}" in n and "second" in n).double() for f in features]
    deltas = [each[f"bert.{layer}.weight"] - old[f"{layer}.weight"] for each in tuned]
    expected = sum(W @ C for W, C in zip(deltas, moments, strict=True)) @ torch.linalg.pinv(sum(moments))
    change = found[f"{layer}.weight"] - old[f"{layer}.weight"]
    seen = sum(moments)
    assert ((change - expected) @ seen).norm() < 1e-3 * (expected @ seen).norm()
    bias = f"{layer}.bias"
    mean = sum(each[f"bert.{bias}"] - old[bias] for each in tuned) / 2
    torch.testing.assert_close(found[bias], old[bias] + mean, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_fisher_weighs_every_tensor_by_its_gradients(tmp_path, text_tasks, tiny_model, family):
    base = tiny_model(family)
    save_tasks(tmp_path, base)
    options = {"samples": 5, "lambda": 1.0}
    sources = [tmp_path / "mood", tmp_path / "score"]
    merge_adapters(sources, "fisher", options=options, data=str(text_tasks), model=str(base), out=tmp_path / "m")
    tokenizer, found, old, fisher, new = (
        AutoTokenizer.from_pretrained(base),
        weights(tmp_path / "m"),
        weights(base),
        [],
        [],
    )
    for source in sources:
        model = AutoModelForSequenceClassification.from_pretrained(source).eval()
        model.config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id
        split = draw_examples(load_split(source.name, text_tasks, "train"), 5, 0)
        total = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
        for example, label in zip(split.examples, split.labels, strict=True):
            logits = model(**tokenizer(*example.texts, return_tensors="pt")).logits[0]
            loss = (logits[0] - label).square() / 2 if source.name == "score" else -logits.log_softmax(-1)[label]
            model.zero_grad()
            loss.backward()
            for name, parameter in model.named_parameters():
                total[name] += 0 if parameter.grad is None else parameter.grad.square()
        prefix = f"{model.base_model_prefix}."
        own = {name.removeprefix(prefix): F.double() for name, F in total.items() if name.startswith(prefix)}
        norm = sum(float(own[name].square().sum()) for name in old if name in own) ** 0.5
        fisher.append({name: F / norm for name, F in own.items()})
        new.append({name.removeprefix(prefix): W for name, W in weights(source).items()})
    for name, W in old.items():
        F = torch.stack([each[name] for each in fisher])
        deltas = torch.stack([each[name] - W for each in new])
        expected = W + torch.where(F.sum(0) > 0, (F * deltas).sum(0) / F.sum(0), deltas.mean(0))
        # Where hardly any gradient arrives, its share is rounding.
        sure = (F.sum(0) > 1e-10) | (F.sum(0) == 0)
        torch.testing.assert_close(found[name][sure], expected[sure], atol=1e-4, rtol=1e-3)


def test_fisher_does_not_mix_adapters_with_full_models(tmp_path, text_tasks, tiny_model):
    base = tiny_model("bert")
    save_tasks(tmp_path, base)
    extract_adapter(base, tmp_path / "mood", rank=2, out=tmp_path / "adapters/mood")
    sources = [tmp_path / "adapters/mood", tmp_path / "score"]
    with pytest.raises(OsrmError, match=r"fisher takes adapters or full models, not both: .*mood is an adapter"):
        merge_adapters(sources, "fisher", data=str(text_tasks), model=str(base), out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_interference_is_that_of_the_same_updates_as_factors(tmp_path, text_tasks, tiny_model):
    base = tiny_model("bert")
    save_tasks(tmp_path, base)
    words = ("--statistic", "second-moment", "--target-modules", "all-linear", "--quiet")
    assert osrm("collect", "--data", text_tasks, "--model", base, *words, cwd=tmp_path).code == 0
    found = []
    for task in ("mood", "score"):
        extract_adapter(base, tmp_path / task, rank=10_000, out=tmp_path / "adapters" / task)
    for sources in (("mood", "score"), ("adapters/mood", "adapters/score")):
        run = osrm("diagnose", "features", *sources, "--json", "--quiet", "--overwrite", cwd=tmp_path)
        assert run.code == 0, run
        found.append(json.loads(run.stdout))
    full, factors = found
    for task, row in factors["interference"].items():
        assert full["interference"][task] == pytest.approx(row, rel=1e-4)
        assert full["adapters"][task]["norm"] == pytest.approx(factors["adapters"][task]["norm"], rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_language_models_sharded_in_half_precision(tmp_path, family):
    kind = torch.bfloat16
    writer(family).to(kind).save_pretrained(str(tmp_path / "base"), max_shard_size="6KB")
    tuned = [tune(writer(family).to(kind), seed, everything) for seed in (1, 2)]
    for seed, model in zip((1, 2), tuned, strict=True):
        model.save_pretrained(str(tmp_path / f"t{seed}"), max_shard_size="9KB")
    merge_adapters(
        [tmp_path / "t1", tmp_path / "t2"], "average", model=str(tmp_path / "base"), dtype="float32", out=tmp_path / "m"
    )
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    found, first, second = (weights(tmp_path / name) for name in ("m", "t1", "t2"))
    for name, W in found.items():
        assert (W - (first[name] + second[name]) / 2).norm() <= 1e-6 * W.norm(), name
    text_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "m"))


def test_adapters_and_full_models_merge_together(models, tmp_path):
    extract_adapter(models / "base", models / "tuned1", rank=4, out=tmp_path / "a")
    result = merge_adapters(
        [tmp_path / "a", models / "tuned2"], options={"lambda": 1.0}, model=str(models / "base"), out=tmp_path / "m"
    )
    assert result.summary["form"] == "model"
    base, (tuned,) = differences(models, "tuned2")
    found = weights(tmp_path / "m")
    from osrm_cli.adapters.open_adapter import open_adapter

    adapter = open_adapter(tmp_path / "a")
    for name, W in base.items():
        own = f"bert.{name.removesuffix('.weight')}"
        delta = factories.dense(adapter, own) if own in adapter.layers else 0
        assert (found[name] - W - tuned[name] - delta).norm() < 1e-6 * W.norm().clamp_min(1), name


def test_added_rows_are_left_out(tmp_path):
    writer("llama", tie_word_embeddings=True).save_pretrained(str(tmp_path / "base"))
    tuned = tune(writer("llama", tie_word_embeddings=True), 1, everything)
    tuned.resize_token_embeddings(64)
    tuned.save_pretrained(str(tmp_path / "t"))
    (tmp_path / "t/tokenizer.json").write_text("{}")
    result = merge_adapters([tmp_path / "t"], model=str(tmp_path / "base"), out=tmp_path / "m")
    assert result.warnings == [
        f"{tmp_path / 't'}: 4 rows of model.embed_tokens.weight are left out, the base model does not have them"
    ]
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    torch.testing.assert_close(text_logits(found), text_logits(tuned)[..., :60], atol=1e-5, rtol=1e-4)
    assert "tokenizer.json" not in listing(tmp_path / "m")
    back = merge_adapters([tmp_path / "base"], model=str(tmp_path / "t"), out=tmp_path / "back")
    assert not back.warnings
    assert torch.equal(
        weights(tmp_path / "back")["model.embed_tokens.weight"][60:],
        weights(tmp_path / "t")["model.embed_tokens.weight"][60:],
    )


# --- the rest of an extracted adapter -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_adapter_and_rest_are_the_model(tmp_path, family, kind):
    base, tuned = factories.model(family).to(kind), tune(factories.model(family).to(kind), 1, everything)
    base.save_pretrained(str(tmp_path / "base"))
    tuned.save_pretrained(str(tmp_path / "t"))
    extract_adapter(
        tmp_path / "base", tmp_path / "t", rank=2, out=tmp_path / "a", keep_rest=tmp_path / "rest.safetensors"
    )
    merge_adapters([tmp_path / "a"], form="model", out=tmp_path / "m")
    found, expected = weights(tmp_path / "m"), weights(tmp_path / "t")
    in_head = set(load_file(tmp_path / "m/tasks/a/head.safetensors"))
    for name in found.keys() - in_head:
        tolerance = 1e-6 if kind == torch.float32 else 2e-3
        assert (found[name] - expected[name]).norm() <= tolerance * expected[name].norm(), name
    merge_adapters([tmp_path / "a"], out=tmp_path / "plain")  # an adapter does without


def test_rests_are_merged_as_full_models_are(models, tmp_path):
    for seed in (1, 2):
        rest = tmp_path / f"tuned{seed}/rest.safetensors"
        extract_adapter(models / "base", models / f"tuned{seed}", rank=3, out=rest.parent, keep_rest=rest)
    options = {"lambda": 0.5, "density": 0.4}
    paths = [tmp_path / "tuned1", tmp_path / "tuned2"]
    merge_adapters(paths, "ties", options=options, form="model", model=str(models / "base"), out=tmp_path / "rests")
    merged(models, tmp_path / "full", "ties", options=options)
    found, expected = weights(tmp_path / "rests"), weights(tmp_path / "full")
    far = sum(int((found[name] - W).abs().max() > 1e-5) for name, W in expected.items())
    assert far <= 2  # rounding moves an entry across a threshold
    assert osrm("verify", "tuned1", cwd=tmp_path).code == 0


def test_a_rest_that_is_gone_or_another_is_refused(models, tmp_path):
    rest = tmp_path / "rest.safetensors"
    extract_adapter(models / "base", models / "tuned1", rank=3, out=tmp_path / "a", keep_rest=rest)
    with pytest.raises(OsrmError, match="exists already"):
        extract_adapter(models / "base", models / "tuned1", rank=3, out=tmp_path / "b", keep_rest=rest)
    with pytest.raises(OsrmError, match=r"core-ties takes adapters alone, .*a is a full model or has a rest"):
        merge_adapters([tmp_path / "a"], "core-ties", form="model", out=tmp_path / "m")
    save_file({"x": torch.ones(1)}, rest)
    with pytest.raises(OsrmError, match=r"extracted with --keep-rest, but .*rest\.safetensors is another file"):
        merge_adapters([tmp_path / "a"], form="model", out=tmp_path / "m")
    rest.unlink()
    with pytest.raises(OsrmError, match=r"rest\.safetensors is missing"):
        merge_adapters([tmp_path / "a"], form="model", out=tmp_path / "m")


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_from_outside(models, tmp_path):
    for name in ("base", "tuned1", "tuned2"):
        shutil.copytree(models / name, tmp_path / name)
    run = process("merge", "tuned1", "two=tuned2", "--base", "base", "-m", "ties", "--json", cwd=tmp_path)
    assert run.code == 0, run
    told = json.loads(run.stdout)
    assert (told["form"], told["adapters"], told["layers"]) == ("model", ["tuned1", "two"], 19)
    assert "tuned1 is a full model: the result is a model" in run.stderr
    assert {"model.safetensors", "tasks/two/head.safetensors", "merge.yaml"} <= listing(tmp_path / "merged")
    assert "# 2 models merged with ties" in (tmp_path / "merged/README.md").read_text()
    assert osrm("verify", "merged", cwd=tmp_path).code == 0
    dry = osrm("merge", "tuned1", "tuned2", "--base", "base", "-m", "auto", "--dry-run", "-o", "n", cwd=tmp_path)
    assert dry.code == 0
    assert "by ties" in dry.stdout
    assert "19 layers and " in dry.stdout


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "tuned1 is not an adapter: adapter_config.json is missing"),
        (("--base", "base", "--as", "adapter"), "tuned1 is a full model: the result is a model"),
        (("--base", "base", "-m", "svd"), "svd of full models needs a rank"),
        (("--base", "base", "--calibrate"), "heads of full models cannot be calibrated"),
        (("--base", "nosuch"), "base model 'nosuch' is neither a folder"),
        (("--base", "base", "-m", "regmean++"), "method regmean++ takes adapters alone"),
        (("--base", "base", "-m", "fisher"), "method fisher needs data of 'tuned1'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_refusals(models, words, error):
    run = osrm("merge", "tuned1", "tuned2", *words, "-o", "nowhere", cwd=models)
    assert (run.code, run.stdout) == (1, "")
    assert error in run.error
    assert not (models / "nowhere").exists()
