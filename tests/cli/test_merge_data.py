"""``osrm merge`` with the methods that run the model: what they write, that it repeats, and every refusal."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.merging.merge import merge_adapters
from osrm_cli.storage import provenance, records
from osrm_cli.tasks.loading import draw_examples, load_split, load_texts
from tests.run_cli import ROOT, osrm
from tests.trained_adapters import LABELS, bare, save

torch.set_num_threads(1)
CASES = {
    "fisher": ("mood", "pair", "score"),
    "regmean++": ("mood", "pair", "score"),
    "sequential": ("mood", "pair", "score"),
    "lot": ("mood", "pair", "score"),
    "adamerging": ("mood", "pair"),
    "frank-wolfe": ("mood", "pair", "score"),
    "matched-weights": ("mood", "pair", "score"),
    "distill": ("mood", "pair", "score"),
}
QUICK = {
    **{name: ["--samples", 4] for name in ("fisher", "regmean++", "sequential", "lot")},
    **{name: ["--samples", 8, "--steps", 3] for name in ("adamerging", "frank-wolfe", "matched-weights", "distill")},
}


@pytest.fixture(scope="module")
def template(tiny_model, text_tasks, tmp_path_factory):
    root = tmp_path_factory.mktemp("work")
    for task in LABELS:
        save(root / "adapters" / task, tiny_model("bert"), "bert", text_tasks)
    return root


@pytest.fixture
def project_copy(template, tmp_path):
    shutil.copytree(template, tmp_path / "work")
    return tmp_path / "work"


def command(method, *more):
    return ["merge", *(f"adapters/{task}" for task in CASES[method]), "-m", method, *QUICK[method], *more, "--quiet"]


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def edit(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize("method", CASES)
def test_written_recorded_and_loaded_by_plain_peft(project_copy, tiny_model, text_tasks, method):
    run = osrm(*command(method, "--json"), cwd=project_copy)
    assert run.code == 0, run
    facts = records.read_record(project_copy / "merged")
    told = json.loads(run.stdout)
    for task in CASES[method]:
        count = QUICK[method][1]
        read = load_split(task, text_tasks, "train")
        if method in ("regmean++", "sequential", "lot", "matched-weights", "distill"):
            read = load_texts(read.task, text_tasks, "train")
        drawn = draw_examples(read, count, 0)
        expected = {"source": str(text_tasks), "split": "train", "examples": count, "sha256": drawn.sha256}
        assert facts["examples"][task] == told["examples"][task] == expected
        assert open_adapter(project_copy / "merged" / "tasks" / task).head_tensors()
        model = PeftModel.from_pretrained(bare(tiny_model("bert"), task), str(project_copy / "merged/tasks" / task))
        assert torch.isfinite(model(input_ids=torch.tensor([[1, 7, 8, 2]])).logits).all()
    mixed = dict.fromkeys(CASES[method], 49) if method == "distill" else None  # 7 for each of 7: one is held out
    assert facts.get("mixed_texts") == told.get("mixed_texts") == mixed
    assert facts["settings"]["method"] == method
    assert facts["base"]["sha256"]
    assert sorted(path.name for path in project_copy.iterdir()) == ["adapters", "merged"]  # no scratch is left
    whole = open_adapter(project_copy / "merged")
    plain = osrm("merge", *command(method)[1 : 1 + len(CASES[method])], "--out", "plain", "--quiet", cwd=project_copy)
    assert plain.code == 0
    for layer in whole.layers:
        assert not torch.equal(whole.delta(layer).dense(), open_adapter(project_copy / "plain").delta(layer).dense())


@pytest.mark.parametrize("method", CASES)
def test_same_inputs_same_bytes(project_copy, method):
    assert osrm(*command(method), cwd=project_copy).code == 0
    turned = command(method)
    turned[1], turned[2] = turned[2], turned[1]
    assert osrm(*turned, "--out", "again", "--jobs", 2, cwd=project_copy).code == 0
    assert files(project_copy / "merged") == files(project_copy / "again")
    assert osrm(*command(method), "--seed", 1, "--out", "other", cwd=project_copy).code == 0
    names = [name for name in files(project_copy / "other") if name.name == "adapter_model.safetensors"]
    assert all(files(project_copy / "other")[name] != files(project_copy / "merged")[name] for name in names)


@pytest.mark.parametrize("method", CASES)
def test_the_written_recipe_repeats_it(project_copy, method):
    assert osrm(*command(method), cwd=project_copy).code == 0
    if method in ("adamerging", "frank-wolfe", "matched-weights"):  # without data
        for task in CASES[method]:
            facts = records.read_record(project_copy / "adapters" / task)
            provenance.write_record(project_copy / "adapters" / task, {"task": facts["task"]})
    run = osrm("merge", "--recipe", "merged/merge.yaml", "--out", "again", "--quiet", cwd=project_copy)
    assert run.code == 0, run
    for name in ("adapter_model.safetensors", "tasks/pair/adapter_model.safetensors", "merge.yaml"):
        assert (project_copy / "merged" / name).read_bytes() == (project_copy / "again" / name).read_bytes()


@pytest.mark.parametrize("method", CASES)
def test_as_model_is_the_same_update(project_copy, tiny_model, method):
    assert osrm(*command(method, "--as", "model"), cwd=project_copy).code == 0
    assert osrm(*command(method), "--out", "small", cwd=project_copy).code == 0
    before, after = (
        load_file(tiny_model("bert") / "model.safetensors"),
        load_file(project_copy / "merged" / "model.safetensors"),
    )
    small, kept = open_adapter(project_copy / "small"), records.read_record(project_copy / "small")["kept_energy"]
    for layer in small.layers:
        name = next(name for name in before if f"bert.{name}" == f"{layer}.weight")
        update, expected = after[name] - before[name], small.delta(layer).dense()
        lost = float((update - expected).square().sum() / update.square().sum())
        rounding = 1e-5 if method == "sequential" else 1e-9  # what it keeps is counted in the outputs
        assert lost == pytest.approx(1 - kept[layer], rel=1e-3, abs=rounding)
        assert (lost > 1e-6) == (method == "fisher")  # the others fit into the sum of the ranks


def test_adamerging_says_and_keeps_what_it_learned(project_copy):
    run = osrm(*command("adamerging", "--lambda", 0.5)[:-1], cwd=project_copy)
    assert run.code == 0, run
    assert "mood: mean entropy" in run.stderr
    facts = records.read_record(project_copy / "merged")
    assert set(facts["entropy"]) == {"mood", "pair"}
    recipe = yaml.safe_load((project_copy / "merged" / "merge.yaml").read_text())
    assert (recipe["method"], recipe["options"]) == ("task-arith", {"lambda": 1.0})
    layers = open_adapter(project_copy / "adapters/mood").layers
    for entry in recipe["adapters"]:
        assert len(entry["weight"]) == len(layers)
        assert all(abs(weight - 0.5) < 4e-3 for weight in entry["weight"].values())
        assert len(set(entry["weight"].values())) > 1
    assert "| mood | adapters/mood | by layer |" in (project_copy / "merged/README.md").read_text()


def test_data_can_be_given(project_copy, text_tasks):
    for task in CASES["fisher"]:
        (project_copy / "adapters" / task / "osrm.json").unlink()  # as another program writes adapters
    assert "does not record its training data" in refused(project_copy, *command("fisher")).error
    run = osrm(*command("fisher", "--data", text_tasks), cwd=project_copy)
    assert run.code == 0, run
    assert yaml.safe_load((project_copy / "merged/merge.yaml").read_text())["data"] == str(text_tasks)
    assert osrm("merge", "--recipe", "merged/merge.yaml", "--out", "again", "--quiet", cwd=project_copy).code == 0
    assert files(project_copy / "merged") == files(project_copy / "again")


def test_defaults_for_other_commands_are_no_error(project_copy, text_tasks):
    (project_copy / "osrm.toml").write_text(f'data = "{text_tasks}"\nsamples = 7\nseed = 3\n')
    assert osrm("merge", "adapters/mood", "--quiet", cwd=project_copy).code == 0
    assert records.read_record(project_copy / "merged")["settings"]["options"] == {"lambda": 1.0}
    assert osrm("merge", "adapters/mood", "-m", "fisher", "--overwrite", "--quiet", cwd=project_copy).code == 0
    assert records.read_record(project_copy / "merged")["settings"]["options"] == {
        "lambda": 1.0,
        "samples": 7,
        "seed": 3,
    }


def test_regmean_plus_plus_needs_no_head(project_copy):
    for task in CASES["regmean++"]:
        headless(project_copy / "adapters" / task)
    assert osrm(*command("regmean++"), cwd=project_copy).code == 0
    assert not (project_copy / "merged" / "tasks").exists()


def test_auto_takes_texts_where_there_are_some(project_copy, text_tasks):
    words = ["merge", "adapters/mood", "adapters/pair", "adapters/score", "-m", "auto", "--dry-run"]

    def choice(*more):
        run = osrm(*words, *more, cwd=project_copy)
        assert run.code == 0, run
        return run.stdout.partition(" by ")[2].split()[0], run.stderr

    method, said = choice()
    assert method == "distill"
    assert "method distill: there are texts of every task" in said
    assert choice("--data", "nowhere")[0] == "ties"
    facts = records.read_record(project_copy / "adapters/pair")
    provenance.write_record(project_copy / "adapters/pair", {**facts, "data": {"source": "hub"}})
    method, said = choice()
    assert method == "ties"  # what would have to be fetched is not at hand
    assert "there are no texts of pair in hub" in said
    assert choice("--data", text_tasks)[0] == "distill"
    headless(project_copy / "adapters/mood")
    method, said = choice("--data", text_tasks)
    assert method == "ties"
    assert "adapters/mood has no head" in said


def test_auto_leaves_one_adapter_as_it_is_and_writes_what_it_chose(project_copy):
    run = osrm("merge", "adapters/mood", "-m", "auto", cwd=project_copy)
    assert run.code == 0, run
    assert "method task-arith: one adapter is itself" in run.stderr
    assert yaml.safe_load((project_copy / "merged/merge.yaml").read_text())["method"] == "task-arith"


def test_dry_run_reads_data_and_writes_nothing(project_copy):
    run = osrm(*command("fisher", "--dry-run"), cwd=project_copy)
    assert run.stdout.startswith("would write merged: mood, pair, score by fisher (lambda 1.0, samples 4, seed 0)")
    assert not (project_copy / "merged").exists()


def refused(project_copy, *words):
    """Run; expect exit 1, one line, an empty stdout, and nothing new on disk."""
    before = sorted(path.relative_to(project_copy) for path in project_copy.rglob("*"))
    run = osrm(*words, cwd=project_copy)
    assert run.code == 1, run
    assert run.stdout == ""
    assert sorted(path.relative_to(project_copy) for path in project_copy.rglob("*")) == before
    return run


def headless(folder):
    path = folder / "adapter_model.safetensors"
    save_file({name: x for name, x in load_file(path).items() if "lora_" in name}, path)
    edit(folder, modules_to_save=None, task_type=None)


def other_labels(folder):
    facts = records.read_record(folder)
    provenance.write_record(folder, {**facts, "task": {**facts["task"], "labels": ["a", "b"]}})


def other_head(folder):
    path = folder / "adapter_model.safetensors"
    shapes = {name: torch.zeros(4, *x.shape[1:]) if "classifier" in name else x for name, x in load_file(path).items()}
    save_file(shapes, path)


def other_widths(folder):
    for task in LABELS:
        path = folder.parent / task / "adapter_model.safetensors"
        wide = {n: torch.ones(x.shape[0], 8) if "lora_A" in n else x for n, x in load_file(path).items()}
        save_file(wide, path)


def no_base(folder):
    for task in LABELS:
        edit(folder.parent / task, base_model_name_or_path=None)


def nothing(folder):
    pass


REFUSALS = {
    "no data": (nothing, "fisher", ["--data", "nowhere"], "no data folder nowhere"),
    "no such task": (nothing, "regmean++", ["--data", "mini"], "unknown task 'mood' in mini"),
    "no head": (headless, "fisher", [], "adapters/mood has no classification head"),
    "no head to learn with": (headless, "adamerging", [], "adapters/mood has no classification head"),
    "other labels": (other_labels, "fisher", [], "was trained on the classes ['a', 'b']"),
    "other head": (other_head, "fisher", [], "does not fit the model with 2 outputs"),
    "regression": (nothing, "adamerging", ["adapters/score"], "task 'score' predicts a number"),
    "no base": (no_base, "fisher", [], "does not record its base model"),
    "other base": (other_widths, "regmean++", [], "(d_in, d_out) = (8, 16)"),
    "no samples": (
        nothing,
        "fisher",
        ["--recipe"],
        "option 'samples' is 0, expected a whole number from 1 to 1,000,000,000",
    ),
    "steps of fisher": (nothing, "fisher", ["--steps", 3], "method fisher does not use --steps"),
    "layers that are not there": (
        nothing,
        "distill",
        ["--target-modules", "gate"],
        "no linear layer matches --target-modules gate",
    ),
    "a rate of zero": (nothing, "distill", ["--lr", 0], "option 'lr' is 0.0, expected a number above 0"),
    "too many mixed texts": (
        nothing,
        "distill",
        ["--mixed-texts", 1001],
        "option 'mixed_texts' is 1001, expected a whole number from 0 to 1,000",
    ),
    "mixed texts of fisher": (nothing, "fisher", ["--mixed-texts", 1], "method fisher does not use --mixed-texts"),
    "features of fisher": (nothing, "fisher", ["--features", "f"], "method fisher does not use --features"),
    "pico before": (nothing, "adamerging", ["-m", "pico+adamerging"], "the weights are learned for the plain sum"),
}


@pytest.mark.parametrize(("prepare", "method", "more", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(project_copy, prepare, method, more, message):
    prepare(project_copy / "adapters" / "mood")
    words = command(method, *more)
    if more == ["--recipe"]:
        entries = [f"adapters/{task}" for task in CASES[method]]
        (project_copy / "r.yaml").write_text(
            yaml.safe_dump({"method": method, "adapters": entries, "options": {"samples": 0}})
        )
        words = ["merge", "--recipe", "r.yaml", "--quiet"]
    assert message in refused(project_copy, *words).error


def test_mixed_texts_are_not_negative(project_copy):
    run = osrm(*command("distill", "--mixed-texts", -1), cwd=project_copy)
    assert run.code == 2
    assert "Invalid value for '--mixed-texts': Input should be greater than or equal to 0" in run.stderr
    with pytest.raises(OsrmError, match="option 'mixed_texts' is -1, expected a whole number from 0 to 1,000"):
        merge_adapters([project_copy / "adapters/mood"], "distill", options={"mixed_texts": -1})


@pytest.mark.parametrize("option", ["--data", "--model", "--revision", "--samples", "--steps", "--target-modules"])
def test_inputs_that_a_method_does_not_use(project_copy, option):
    words = ["merge", "adapters/mood", "-m", "ties", option, "7", "--quiet"]
    assert refused(project_copy, *words).error == f"method ties does not use {option}"


def test_merging_adapters_alone_imports_what_it_uses(project_copy):
    code = (
        "import sys; from osrm_cli.cli.app import app; from typer.testing import CliRunner as R; "
        "found = R().invoke(app, sys.argv[1:]); print(found.exit_code, *sorted(sys.modules))"
    )
    words = ["merge", "adapters/mood", "adapters/pair", "-m", "ties", "--quiet"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=project_copy, capture_output=True, text=True, env=env, check=True
    )
    code, *modules = done.stdout.split()
    assert code == "0"
    assert "torch" in modules
    assert not {"transformers", "peft", "datasets"} & set(modules)
    assert not {"osrm_cli.tasks.loading", "osrm_cli.merging.recipes.recipe_file"} & set(modules)
