"""Merged folders: plain PEFT loads what a dense float64 sum says, for every family, form and type."""

import json
import shutil
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import stack_factors
from osrm_cli.merging.feature_moments import open_layer_data
from osrm_cli.merging.layer_data import NoLayerData
from osrm_cli.merging.merged_layer import merge_layers
from osrm_cli.merging.methods import find_method
from osrm_cli.merging.output.merged_folder import write_merged_folder
from osrm_cli.merging.output.merged_model import MergeTarget
from osrm_cli.merging.output.task_masks import read_task_delta
from osrm_cli.merging.plan import MergePlan
from osrm_cli.merging.recipes.recipe import MergeRecipe, RecipeEntry
from osrm_cli.merging.recipes.recipe_file import read_recipe
from osrm_cli.storage import input_files, provenance, records, safetensors_writer
from tests import factories

MIXED = {
    "cola": {"labels": 2, "r": 4, "rank_pattern": {"layer.1.attention.self.query": 2}, "alpha_pattern": {"value": 5}},
    "mnli": {"labels": 3, "r": 2, "lora_alpha": 3, "use_rslora": True},
    "sst2": {"labels": 2, "r": 3, "target_modules": ["query", "attention.output.dense"]},
}
WEIGHTS = {"cola": 0.7, "mnli": -0.4, "sst2": 1.3}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    for seed, (name, settings) in enumerate(MIXED.items()):
        factories.save(root / name, "bert", seed, **settings)
    return root


def write(out, plan, jobs=1, base=None, base_dir=None):
    """Merge into a new folder."""
    saved, data = plan.read_saved_modules(), open_layer_data(plan)
    target = MergeTarget.find(plan, base_dir, saved) if base_dir else None
    out.mkdir(parents=True)
    layers = merge_layers(plan, data, target.order() if target else plan.layers, jobs)
    contents = write_merged_folder(out, plan, saved, layers, data, base, target)
    plan.write_recipe(out)
    return contents


def run(out, method, paths, *, jobs=1, base=None, base_dir=None, **options):
    weights = options.pop("weights", {})
    asked = {key: options.pop(key) for key in ("output", "dtype", "features") if key in options}
    plan = MergePlan.of(MergeRecipe(method, tuple(RecipeEntry(str(path)) for path in paths), options, **asked), weights)
    return plan, write(out, plan, jobs, base, base_dir)


def expected_sum(folder, scale=1.0, weights=None):
    """The dense float64 sum of PEFT's own updates, by layer."""
    total = {}
    for name in MIXED:
        peft_model = factories.load(folder / name, labels=MIXED[name]["labels"])
        for layer in open_adapter(folder / name).layers:
            part = factories.delta(peft_model.double(), layer) * scale * (weights or {}).get(name, 1.0)
            total[layer] = total.get(layer, 0) + part
    return total


def with_added(family, updates, labels=2):
    """A classifier in float64 with dense updates added to its weights."""
    model = factories.model(family, labels).double()
    for layer, update in updates.items():
        module = model.get_submodule(layer)
        turned = type(module).__name__ in ("Conv1D", "Embedding")
        module.weight.data += update.T if turned else update
    return model


def close(found, expected, tolerance=1e-6):
    assert torch.linalg.norm(found.double() - expected) <= tolerance * torch.linalg.norm(expected)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_task_arith_is_the_dense_sum_and_loads_in_plain_peft(adapters, tmp_path):
    run(tmp_path / "m", "task-arith", [adapters / name for name in MIXED], weights=WEIGHTS, **{"lambda": 0.3})
    total = expected_sum(adapters, 0.3, WEIGHTS)
    peft_model = factories.load(tmp_path / "m")
    for layer, update in total.items():
        close(factories.delta(peft_model, layer), update)
    for name, settings in MIXED.items():
        whole = factories.load(tmp_path / "m" / "tasks" / name, labels=settings["labels"])
        reference = with_added("bert", total, settings["labels"])
        head = open_adapter(adapters / name).head_tensors()
        reference.load_state_dict({key: tensor.double() for key, tensor in head.items()}, strict=False)
        close(factories.logits(whole), factories.logits(reference))


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_logits_in_other_families(tmp_path, family):
    peft_models = {name: factories.save(tmp_path / name, family, seed) for seed, name in enumerate("ab")}
    run(tmp_path / "m", "task-arith", [tmp_path / name for name in "ab"], **{"lambda": 0.5})
    whole = factories.load(tmp_path / "m" / "tasks" / "b", family)
    layers = open_adapter(tmp_path / "a").layers
    total = {
        layer: sum(factories.delta(model.double(), layer) for model in peft_models.values()) * 0.5 for layer in layers
    }
    reference = with_added(family, total)
    head = {name: tensor.double() for name, tensor in open_adapter(tmp_path / "b").head_tensors().items()}
    assert not reference.load_state_dict(head, strict=False).unexpected_keys
    close(factories.logits(whole), factories.logits(reference))


def test_average_counts_an_adapter_without_the_layer_as_zero(adapters, tmp_path):
    run(tmp_path / "m", "average", [adapters / name for name in MIXED])
    peft_model = factories.load(tmp_path / "m")
    for layer, update in expected_sum(adapters, 1 / 3).items():
        close(factories.delta(peft_model, layer), update)


@pytest.mark.parametrize("method", ["task-arith", "cat", "svd", "ties", "dare", "tsv", "knots-ties"])
def test_order_of_adapters_and_jobs_change_no_byte(adapters, tmp_path, method):
    paths = [adapters / name for name in MIXED]
    run(tmp_path / "one", method, paths)
    run(tmp_path / "two", method, paths[::-1], jobs=3)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_kept_energy_is_that_of_the_dense_truncation(adapters, tmp_path):
    _, done = run(tmp_path / "m", "svd", [adapters / name for name in MIXED], rank=2)
    peft_model = factories.load(tmp_path / "m")
    facts = records.read_record(tmp_path / "m")
    for layer, update in expected_sum(adapters).items():
        u, sigma, vh = torch.linalg.svd(update)
        share = float(sigma[:2].square().sum() / sigma.square().sum())
        assert done.kept[layer] == pytest.approx(share, rel=1e-7)
        assert facts["kept_energy"][layer] == done.kept[layer]
        close(factories.delta(peft_model, layer), u[:, :2] * sigma[:2] @ vh[:2], 1e-5)


@pytest.mark.parametrize("options", [{"rank": 3}, {"energy": 0.8}, {}])
def test_element_space_as_adapter_is_recompressed_and_says_so(adapters, tmp_path, options):
    paths = [adapters / name for name in MIXED]
    plan, done = run(tmp_path / "m", "magnitude", paths, density=0.3, **options)
    peft_model = factories.load(tmp_path / "m")
    for layer in plan.layers:
        held = [open_adapter(path) for path in paths if layer in open_adapter(path).layers]
        exact = sum(pruned(factories.dense(adapter, layer), 0.3) for adapter in held)
        sigma = torch.linalg.svdvals(exact)
        shares = (sigma.square().cumsum(0) / sigma.square().sum()).tolist()
        rank = done.ranks[layer]
        assert done.kept[layer] == pytest.approx(shares[rank - 1], rel=1e-5)
        found = factories.delta(peft_model, layer).double()
        lost = float((found - exact).square().sum() / exact.square().sum())
        assert lost == pytest.approx(1 - shares[rank - 1], abs=1e-5)
        if "rank" in options:
            assert rank == 3
        elif "energy" in options:
            assert shares[rank - 1] >= 0.8 > shares[rank - 2]
        else:
            assert rank <= sum(adapter.layers[layer].rank for adapter in held)


def pruned(update, density):
    keep = int(density * update.numel())
    threshold = update.abs().flatten().sort(descending=True).values[keep - 1]
    return torch.where(update.abs() >= threshold, update, 0.0)


@pytest.mark.parametrize(
    ("stored", "asked", "written"), [("bfloat16", None, "bfloat16"), ("float16", "float32", "float32")]
)
def test_half_precision_in_float32_inside(tmp_path, stored, asked, written):
    paths = []
    for seed, name in enumerate("ab"):
        factories.save(tmp_path / name, "bert", seed)
        file = tmp_path / name / "adapter_model.safetensors"
        save_file({key: tensor.to(getattr(torch, stored)) for key, tensor in load_file(file).items()}, file)
        paths.append(tmp_path / name)
    run(tmp_path / "m", "task-arith", paths, dtype=asked, **{"lambda": 0.3})
    adapter = open_adapter(tmp_path / "m")
    assert adapter.dtype == getattr(torch, written)
    for layer in adapter.layers:
        exact = 0.3 * sum(factories.dense(open_adapter(path), layer) for path in paths)
        close(factories.dense(adapter, layer), exact, 1e-2 if written == "bfloat16" else 1e-6)


def test_weights_by_pattern_and_over_depth(adapters, tmp_path):
    entries = (
        RecipeEntry(str(adapters / "cola"), {"query": (0.0, 1.0), ".*": 0.5}),
        RecipeEntry(str(adapters / "mnli"), (1.0, 0.0, 2.0)),
    )
    plan = MergePlan.of(MergeRecipe("task-arith", entries))
    found = {layer.name: layer.result for layer in merge_layers(plan, NoLayerData(), plan.layers)}
    cola, mnli = open_adapter(adapters / "cola"), open_adapter(adapters / "mnli")
    for index in range(3):
        for kind, first in (("query", index / 2), ("value", 0.5)):
            layer = f"bert.encoder.layer.{index}.attention.self.{kind}"
            second = (1.0, 0.0, 2.0)[index]
            close(found[layer].dense(), first * factories.dense(cola, layer) + second * factories.dense(mnli, layer))


def test_adapters_without_heads_make_one_folder(tmp_path):
    for seed, name in enumerate("ab"):
        factories.save(tmp_path / name, "bert", seed, task_type=None)
    run(tmp_path / "m", "task-arith", [tmp_path / name for name in "ab"])
    assert not (tmp_path / "m" / "tasks").exists()
    assert "num_labels" not in (tmp_path / "m" / "README.md").read_text()
    factories.load(tmp_path / "m")


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"layers_to_transform": [0, 2]},
        {"exclude_modules": ["layer.1.attention.self.query"]},
        {"target_modules": r".*layer\.[01].*(query|dense)"},
    ],
    ids=["all-linear", "some blocks", "excluded", "expression"],
)
def test_the_result_adapts_the_layers_of_the_file_however_they_were_chosen(tmp_path, settings):
    for seed, name in enumerate("ab"):
        factories.save(tmp_path / name, "bert", seed, **settings)
    plan, _ = run(tmp_path / "m", "task-arith", [tmp_path / name for name in "ab"])
    for folder in ("m", "m/tasks/a"):
        peft_model = factories.load(tmp_path / folder)
        adapted = {name for name, module in peft_model.base_model.model.named_modules() if hasattr(module, "lora_A")}
        assert adapted == set(plan.layers)


def test_the_recipe_written_beside_the_result_repeats_it(adapters, tmp_path, monkeypatch):
    monkeypatch.chdir(adapters.parent)
    paths = [f"{adapters.name}/{name}" for name in MIXED]
    run(tmp_path / "one", "dare-ties", paths, weights=WEIGHTS, density=0.5, seed=7, dtype="bfloat16")
    again = read_recipe(tmp_path / "one" / "merge.yaml")
    plan = MergePlan.of(again)
    write(tmp_path / "two", plan)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_records(adapters, tmp_path):
    trained = tmp_path / "adapters" / "sst2"
    shutil.copytree(adapters / "sst2", trained)
    dev = {"split": "dev", "sha256": "0" * 64, "scores": {"accuracy": 91.25}}
    (trained / "training.json").write_text(json.dumps({"dev": dev}))
    base = {"name": "minilm", "revision": None, "sha256": "1" * 64}
    provenance.write_record(
        trained,
        {
            "task": {"name": "sst2", "columns": ["sentence"], "labels": [0, 1], "metrics": ["accuracy"]},
            "base": base,
            "data": {"source": "hub"},
        },
    )
    run(tmp_path / "m", "task-arith", [trained, adapters / "cola"], weights={"cola": 2}, **{"lambda": 0.3})
    facts = records.read_record(tmp_path / "m")
    assert [source["task"] for source in facts["inputs"]] == ["cola", "sst2"]
    assert [source["weight"] for source in facts["inputs"]] == [2, 1]
    assert facts["inputs"][1]["sha256"] == open_adapter(trained).sha256()
    assert facts["inputs"][1]["dev"] == dev
    assert facts["settings"] == {"method": "task-arith", "options": {"lambda": 0.3}, "as": "adapter"}
    own = records.read_record(tmp_path / "m" / "tasks" / "sst2")
    assert (own["task"], own["data"]) == (
        {"name": "sst2", "columns": ["sentence"], "labels": [0, 1], "metrics": ["accuracy"]},
        {"source": "hub"},
    )
    card = (tmp_path / "m" / "README.md").read_text()
    assert "| sst2 |" in card
    assert "accuracy 91.25" in card
    assert "--method task-arith --lambda 0.3" in card


# --- as a model -------------------------------------------------------------------------------------------------------


def base_folder(folder, family, bare=False, dtype=torch.float32, shards=False):
    model = factories.model(family).to(dtype)
    part = model.base_model if bare else model
    part.save_pretrained(str(folder), max_shard_size="8KB" if shards else "1GB")
    (folder / "tokenizer.json").write_text("{}")
    return model


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("bare", [True, False], ids=["bare", "whole"])
@pytest.mark.parametrize("shards", [True, False], ids=["shards", "one-file"])
def test_model_is_base_plus_update(tmp_path, family, bare, shards):
    base_folder(tmp_path / "base", family, bare, shards=shards)
    for seed, name in enumerate("ab"):
        factories.save(tmp_path / name, family, seed)
    paths = [tmp_path / name for name in "ab"]
    run(tmp_path / "m", "task-arith", paths, base_dir=tmp_path / "base", output="model", jobs=2, **{"lambda": 0.5})
    layers = open_adapter(tmp_path / "a").layers
    total = {layer: 0.5 * sum(factories.dense(open_adapter(path), layer) for path in paths) for layer in layers}
    reference = with_added(family, total)
    loaded = type(reference).from_pretrained(tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors.index.json").exists() == shards
    for name, weight in reference.base_model.state_dict().items():
        close(loaded.base_model.state_dict()[name], weight)
    assert (tmp_path / "m" / "tokenizer.json").read_text() == "{}"
    head = load_file(tmp_path / "m" / "tasks" / "a" / "head.safetensors")
    assert {name: tensor.tolist() for name, tensor in head.items()} == {
        name: tensor.tolist() for name, tensor in open_adapter(tmp_path / "a").head_tensors().items()
    }


def test_model_keeps_element_space_exact(adapters, tmp_path):
    base_folder(tmp_path / "base", "bert")
    paths = [adapters / "cola", adapters / "mnli"]
    _, done = run(tmp_path / "m", "magnitude", paths, base_dir=tmp_path / "base", output="model", density=0.3)
    assert set(done.kept.values()) == {1.0}
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "m"))
    for layer in done.kept:
        exact = sum(pruned(factories.dense(open_adapter(path), layer), 0.3) for path in paths)
        close(after[f"{layer}.weight"].double() - before[f"{layer}.weight"], exact, 1e-5)
        before.pop(f"{layer}.weight")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("stored", "asked"), [(torch.bfloat16, None), (torch.float32, "bfloat16"), (torch.bfloat16, "float32")]
)
def test_model_in_other_types_rounds_once(adapters, tmp_path, stored, asked):
    base_folder(tmp_path / "base", "bert", dtype=stored)
    run(tmp_path / "m", "task-arith", [adapters / "cola"], base_dir=tmp_path / "base", output="model", dtype=asked)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "m"))
    dtype = getattr(torch, asked) if asked else stored
    layers = open_adapter(adapters / "cola").layers
    for name, tensor in before.items():
        update = factories.dense(open_adapter(adapters / "cola"), name[:-7]) if name[:-7] in layers else 0
        expected = tensor.double() + update
        step = torch.finfo(dtype).eps * expected.abs() * 0.51 + 1e-7
        assert after[name].dtype == dtype
        assert bool(((after[name].double() - expected).abs() <= step).all())


def test_embedding_into_a_model(tmp_path):
    base_folder(tmp_path / "base", "gpt2")
    factories.save(tmp_path / "a", "gpt2", target_modules=["wte"])
    run(tmp_path / "m", "task-arith", [tmp_path / "a"], base_dir=tmp_path / "base", output="model")
    update = factories.dense(open_adapter(tmp_path / "a"), "transformer.wte")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "m"))
    close(after["transformer.wte.weight"] - before["transformer.wte.weight"], update.T, 1e-5)


def test_a_base_that_lacks_the_layer_is_refused(adapters, tmp_path):
    factories.model("llama").save_pretrained(str(tmp_path / "base"))
    with pytest.raises(OsrmError, match=r"none of its tensors match layer bert\.encoder\.layer\.0"):
        run(
            tmp_path / "m",
            "cat",
            [adapters / "cola"],
            base_dir=tmp_path / "base",
            output="model",
        )


def test_a_quantized_base_is_refused(adapters, tmp_path):
    base_folder(tmp_path / "base", "bert")
    file = tmp_path / "base" / "model.safetensors"
    stored = load_file(file)
    name = "bert.encoder.layer.1.attention.self.query.weight"
    save_file({**stored, name: stored[name].to(torch.int8)}, file)
    with pytest.raises(OsrmError, match=r"query\.weight is quantized \(I8\)"):
        run(tmp_path / "m", "cat", [adapters / "cola"], base_dir=tmp_path / "base", output="model")


# --- task-aware -------------------------------------------------------------------------------------------------------


def test_task_aware_gives_each_task_its_own_update(adapters, tmp_path):
    paths = [adapters / name for name in ("cola", "mnli")]
    plan, done = run(tmp_path / "m", "emr", paths)
    assert done.form == "task-aware"
    assert not (tmp_path / "m" / "adapter_config.json").exists()
    for layer in plan.layers:
        parts = [factories.dense(open_adapter(path), layer) for path in paths]
        sign = torch.sign(sum(parts))
        agreeing = torch.stack([torch.where(part * sign > 0, part.abs(), 0.0) for part in parts])
        unified = sign * agreeing.max(0).values
        for name, part in zip(("cola", "mnli"), parts, strict=True):
            mask = part * unified > 0
            factor = part.abs().sum() / (mask * unified).abs().sum()
            close(read_task_delta(tmp_path / "m", name, layer), factor * mask * unified, 1e-5)
    with pytest.raises(OsrmError, match="holds no mask"):
        read_task_delta(tmp_path / "m", "sst2", plan.layers[0])


# --- features ---------------------------------------------------------------------------------------------------------


def write_features(folder, task, layers, digest="1" * 64, statistic="second-moment"):
    generator = torch.Generator().manual_seed(len(task))
    held = {}
    for layer in layers:
        x = torch.randn(50, 16, generator=generator, dtype=torch.float64)
        held[f"{layer}.{statistic}"] = x.T @ x / 50
    facts = {
        "command": "collect",
        "task": {"name": task, "columns": ["text"], "labels": ["0", "1"], "metrics": ["accuracy"]},
        "base": {"name": "minilm", "revision": None, "sha256": digest},
        "layers": {layer: {"source": layer, "d_in": 16, "d_out": 16} for layer in layers},
        "statistics": [statistic],
        "tokens": 50,
        "examples": 5,
        "target_modules": ["query", "value"],
        "fan_in_fan_out": False,
        "settings": {"pooling": "masked"},
    }
    folder.mkdir(exist_ok=True)
    safetensors_writer.save_tensors(folder / f"{task}.safetensors", held, facts)
    return held


def test_regmean_reads_the_tasks_second_moments(adapters, tmp_path):
    names = ("cola", "mnli")
    paths = [adapters / name for name in names]
    layers = list(open_adapter(paths[0]).layers)
    moments = [write_features(tmp_path / "features", name, layers) for name in names]
    run(tmp_path / "m", "regmean", paths, features=str(tmp_path / "features"), alpha=1.0)
    found = open_adapter(tmp_path / "m")
    for layer in layers:
        cs = [held[f"{layer}.second-moment"] for held in moments]
        weighted = sum(factories.dense(open_adapter(path), layer) @ c for path, c in zip(paths, cs, strict=True))
        close(factories.dense(found, layer), weighted @ torch.linalg.inv(sum(cs)), 1e-5)
    facts = records.read_record(tmp_path / "m")
    assert [item["sha256"] for item in facts["features"]] == [
        input_files.sha256(tmp_path / "features" / f"{name}.safetensors") for name in names
    ]


def test_regmean_without_what_it_needs_says_which_command_makes_it(adapters, tmp_path):
    asked = {"features": str(tmp_path / "features")}
    layers = list(open_adapter(adapters / "cola").layers)
    paths = [adapters / "cola", adapters / "mnli"]
    with pytest.raises(OsrmError, match=r"cola\.safetensors is missing") as caught:
        run(tmp_path / "m", "regmean", paths, **asked)
    assert caught.value.hint == "osrm collect --task cola --statistic second-moment"
    write_features(tmp_path / "features", "cola", layers)
    write_features(tmp_path / "features", "mnli", layers, statistic="mean")
    with pytest.raises(OsrmError, match=r"needs second-moment of every task, .*mnli\.safetensors holds mean"):
        run(tmp_path / "m", "regmean", paths, **asked)
    write_features(tmp_path / "features", "mnli", layers[:2])
    with pytest.raises(OsrmError, match=r"has nothing for bert\.encoder"):
        run(tmp_path / "m", "regmean", paths, **asked)
    write_features(tmp_path / "features", "mnli", layers, digest="2" * 64)
    with pytest.raises(OsrmError, match="comes from base model minilm"):
        run(tmp_path / "m", "regmean", paths, **asked)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("task-arith", {"rank": 2}),
        ("tsv", {"rank": 2}),
        ("svd", {"rank": 2}),
        ("regmean", {"rank": 2}),
        ("ties", {"rank": 2, "density": 0.5}),
        ("ties", {"density": 0.5}),
    ],
    ids=str,
)
def test_with_features_a_rank_is_cut_by_what_the_inputs_see(adapters, tmp_path, method, options):
    paths = [adapters / name for name in ("cola", "mnli")]
    layers = list(open_adapter(paths[0]).layers)
    held = [write_features(tmp_path / "features", path.name, layers) for path in paths]
    plan, contents = run(tmp_path / "m", method, paths, features=str(tmp_path / "features"), **options)
    found = open_adapter(tmp_path / "m")
    rule = find_method("task-arith" if method == "svd" else method).load()
    for layer in layers:
        moments = tuple(each[f"{layer}.second-moment"] for each in held)
        whole = rule(plan.read_updates(layer, {"second_moments": moments}), plan.options)
        update = (whole if isinstance(whole, torch.Tensor) else whole.dense()).double()
        rank = options.get("rank", sum(open_adapter(path).layers[layer].rank for path in paths))
        U, S, _ = torch.linalg.svd(update @ torch.linalg.cholesky(sum(moments)))
        close(factories.dense(found, layer), U[:, :rank] @ U[:, :rank].T @ update, 1e-5)
        assert contents.kept[layer] == pytest.approx(float(S[:rank].square().sum() / S.square().sum()), rel=1e-6)
    assert len(records.read_record(tmp_path / "m")["features"]) == 2


def test_features_are_left_out_where_nothing_is_cut(adapters):
    entries = tuple(RecipeEntry(str(adapters / name)) for name in ("cola", "mnli"))

    def used(method, output="adapter", **options):
        return MergePlan.of(MergeRecipe(method, entries, options, "here", output)).recipe.features == "here"

    assert used("task-arith", rank=2)
    assert used("tsv", energy=0.9)
    assert used("pico+svd")
    assert used("ties")
    assert used("ties", "model", rank=2)
    assert used("regmean")
    assert not any(map(used, ("task-arith", "cat", "emr", "regmean++", "fisher")))
    assert not used("ties", "model")


# --- memory -----------------------------------------------------------------------------------------------------------


def test_layers_are_taken_one_at_a_time(adapters, monkeypatch):
    """No layer is read before the one ``jobs`` places earlier has been handed over."""
    plan = MergePlan.of(MergeRecipe("task-arith", tuple(RecipeEntry(str(adapters / name)) for name in MIXED)))
    read = []
    original = MergePlan.read_updates

    def counted(self, layer, *rest):
        read.append(layer)
        return original(self, layer, *rest)

    monkeypatch.setattr(MergePlan, "read_updates", counted)
    for jobs in (1, 3):
        read.clear()
        for taken, _ in enumerate(merge_layers(plan, NoLayerData(), plan.layers, jobs)):
            assert len(read) <= taken + jobs


LARGE, SMALL = 1, 1 << 22


@pytest.mark.parametrize(
    ("small", "method", "options", "threads"),
    [
        (SMALL, "task-arith", {}, 3),
        (SMALL, "task-arith", {"output": "model"}, 3),
        (SMALL, "ties", {"energy": 0.9}, 3),
        (LARGE, "task-arith", {}, 2),
        (LARGE, "task-arith", {"output": "model"}, 1),  # the thread that writes forms its rows
        (LARGE, "tsv", {"rank": 8}, 2),
        (LARGE, "ties", {"rank": 1}, 2),
        (LARGE, "ties", {}, 1),  # the sum of the ranks is more than a sixteenth of these widths: decomposed exactly
        (LARGE, "ties", {"energy": 0.9}, 1),
        (LARGE, "emr", {}, 1),
    ],
)
def test_small_layers_and_two_large_ones_are_merged_side_by_side(
    adapters, monkeypatch, small, method, options, threads
):
    """By default as many at a time as torch has threads; two where layers are large, one where that holds matrices."""
    entries = tuple(RecipeEntry(str(adapters / name)) for name in MIXED)
    output = options.get("output", "adapter")
    options = {name: value for name, value in options.items() if name != "output"}
    plan = MergePlan.of(MergeRecipe(method, entries, options, output=output))
    monkeypatch.setattr("osrm_cli.merging.merged_layer.SMALL", small)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    together, seen = threading.Barrier(threads), set()
    original = MergePlan.read_updates

    def watched(self, *rest):
        if (thread := threading.current_thread()) not in seen:
            seen.add(thread)
            together.wait(60)  # until as many have a layer at the same time
        return original(self, *rest)

    monkeypatch.setattr(MergePlan, "read_updates", watched)
    assert len(list(merge_layers(plan, NoLayerData(), plan.layers))) == len(plan.layers)
    assert len(seen) == threads


def test_the_reference_is_pefts_formula(adapters):
    """Guards ``making.dense``: the file's own factors, scaled as rsLoRA says."""
    adapter = open_adapter(adapters / "mnli")
    layer = next(iter(adapter.layers))
    stored = load_file(adapter.folder / "adapter_model.safetensors")
    a, b = (stored[f"base_model.model.{layer}.lora_{factor}.weight"].double() for factor in "AB")
    close(stack_factors([adapter.delta(layer), adapter.delta(layer)]).dense(), 2 * 3 / np.sqrt(2) * b @ a)
