"""``osrm merge`` from outside: what it prints, what it writes, and every refusal."""

import json
import shutil

import pytest
import yaml
from safetensors.torch import load_file, save_file

from osrm_cli.adapters.layers import WEIGHTS_NAME
from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.merging.methods import METHODS
from osrm_cli.merging.methods.options import MethodOptions
from osrm_cli.storage import provenance, records
from tests.factories import dense, model, save
from tests.run_cli import osrm

NAMES = ("cola", "mnli", "sst2")
TASK = {"columns": ["text"], "labels": ["0", "1"], "metrics": ["accuracy"]}
GIVEN = [f"adapters/{name}" for name in NAMES]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("work")
    for seed, name in enumerate(NAMES):
        save(root / "adapters" / name, "bert", seed, labels=2 + seed)
    model("bert").bert.save_pretrained(str(root / "base"))
    return root


@pytest.fixture
def project_copy(template, tmp_path):
    shutil.copytree(template, tmp_path / "work")
    return tmp_path / "work"


def edit(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def refused(project_copy, *words):
    """Run; expect exit 1, one line, an empty stdout, and nothing new on disk."""
    before = sorted(path.relative_to(project_copy) for path in project_copy.rglob("*"))
    run = osrm("merge", *words, cwd=project_copy)
    assert run.code == 1
    assert run.stdout == ""
    assert sorted(path.relative_to(project_copy) for path in project_copy.rglob("*")) == before
    return run


def test_the_users_own_command(project_copy):
    run = osrm("merge", *GIVEN, "--method", "task-arith", "--lambda", "0.3", cwd=project_copy)
    assert run.code == 0
    assert run.stdout == "merged: cola, mnli, sst2 by task-arith (lambda 0.3), 6 layers, rank 12, exact\n"
    found = open_adapter(project_copy / "merged")
    adapters = [open_adapter(project_copy / path) for path in GIVEN]
    for layer in found.layers:
        exact = 0.3 * sum(dense(adapter, layer) for adapter in adapters)
        assert float((dense(found, layer) - exact).norm() / exact.norm()) < 1e-6
    assert sorted(path.name for path in (project_copy / "merged" / "tasks").iterdir()) == list(NAMES)


def test_json_is_one_line_and_quiet_is_quiet(project_copy):
    run = osrm("merge", *GIVEN, "-m", "svd", "--rank", "2", "--json", "--quiet", cwd=project_copy)
    facts = json.loads(run.stdout)
    assert run.stdout.count("\n") == 1
    assert facts["method"] == "svd"
    assert facts["options"] == {"lambda": 1.0, "rank": 2}
    assert facts["adapters"] == list(NAMES)
    assert 0 < facts["kept_energy"]["least"] <= facts["kept_energy"]["mean"] < 1
    assert run.stderr.startswith("warning: recompression lost up to")


def test_a_folder_of_adapters_is_told_from_an_adapter(project_copy):
    run = refused(project_copy, "adapters")
    assert run.error == "adapters is not an adapter: adapter_config.json is missing"
    assert "hint: it contains adapters: give adapters/*" in run.stderr


def test_a_recompressed_model_is_not_told_to_become_one(project_copy):
    run = osrm("merge", *GIVEN, "--rank", "1", "--as", "model", "--model", "base", cwd=project_copy)
    assert run.code == 0, run.stderr
    assert "a higher --rank keeps more, none keeps all" in run.stderr


def test_list_names_every_method(project_copy):
    run = osrm("merge", "--list", cwd=project_copy)
    assert [line.split()[0] for line in run.stdout.splitlines()[1:]] == [row.name for row in METHODS]
    methods = json.loads(osrm("merge", "--list", "--json", cwd=project_copy).stdout)["methods"]
    results = {row["name"]: row["result"] for row in methods}
    assert (results["cat"], results["svd"], results["ties"]) == ("exact", "recompressed", "recompressed")
    assert results["emr"] == "task-aware"
    assert next(row["needs"] for row in methods if row["name"] == "regmean") == ["features"]


def test_every_option_of_every_method_has_a_flag():
    import inspect

    from osrm_cli.cli.commands.merge import merge

    flags = set(inspect.signature(merge).parameters)
    assert {option for row in METHODS for option in row.options} <= flags
    assert MethodOptions.__dataclass_fields__.keys() <= flags


def test_dry_run_checks_and_writes_nothing(project_copy):
    run = osrm("merge", *GIVEN, "--dry-run", cwd=project_copy)
    assert run.code == 0
    assert run.stdout.startswith("would write merged: cola, mnli, sst2 by task-arith")
    assert not (project_copy / "merged").exists()


def test_dry_run_says_what_rank_keeps_most_of_a_dense_result(project_copy):
    run = osrm("merge", *GIVEN, "--method", "ties", "--dry-run", "--json", cwd=project_copy)
    assert run.code == 0, run
    told = json.loads(run.stdout)["rank_to_keep"]
    osrm("merge", *GIVEN, "--method", "ties", "--rank", "auto:0.9", cwd=project_copy)
    record = json.loads((project_copy / "merged" / "adapter_config.json").read_text())
    ranks = {record["r"], *record["rank_pattern"].values()}
    assert min(ranks) <= told["0.9"] <= max(ranks)
    assert told["0.9"] < told["0.99"]
    exact = osrm("merge", *GIVEN, "--dry-run", "--json", "--overwrite", cwd=project_copy)
    assert "rank_to_keep" not in json.loads(exact.stdout)


def test_an_automatic_rank_is_a_share_of_the_energy(project_copy):
    for out, words in (("auto", ("--rank", "auto:0.8")), ("energy", ("--energy", "0.8"))):
        assert osrm("merge", *GIVEN, "--method", "ties", *words, "--out", out, cwd=project_copy).code == 0
    auto, energy = ((project_copy / out / WEIGHTS_NAME).read_bytes() for out in ("auto", "energy"))
    assert auto == energy
    assert "auto:much" in refused(project_copy, *GIVEN, "--rank", "auto:much").error
    assert "--energy" in refused(project_copy, *GIVEN, "--rank", "auto:0.8", "--energy", "0.9").error
    assert "expected a share" in refused(project_copy, *GIVEN, "--rank", "auto:1.8").error
    assert "expected a whole number" in refused(project_copy, *GIVEN, "--rank", "0").error


def test_existing_output(project_copy):
    assert osrm("merge", *GIVEN, cwd=project_copy).code == 0
    before = (project_copy / "merged" / "osrm.json").read_bytes()
    assert refused(project_copy, *GIVEN, "--lambda", "0.5").error == "merged exists already"
    assert osrm("merge", *GIVEN, "--lambda", "0.5", "--overwrite", cwd=project_copy).code == 0
    assert (project_copy / "merged" / "osrm.json").read_bytes() != before


def test_weights_act_as_scaled_adapters(project_copy):
    assert osrm("merge", *GIVEN, "--weight", "sst2=-0.5", "--weight", "cola=0", cwd=project_copy).code == 0
    found = open_adapter(project_copy / "merged")
    for layer in found.layers:
        exact = dense(open_adapter(project_copy / GIVEN[1]), layer) - 0.5 * dense(
            open_adapter(project_copy / GIVEN[2]), layer
        )
        assert float((dense(found, layer) - exact).norm() / exact.norm()) < 1e-6


def test_flags_go_before_the_recipe(project_copy):
    recipe = {
        "method": "ties",
        "adapters": [{"path": path, "weight": 0.5} for path in GIVEN],
        "options": {"lambda": 0.3, "density": 0.4},
    }
    (project_copy / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert osrm("merge", "--recipe", "r.yaml", "--lambda", "0.7", "--weight", "mnli=2", cwd=project_copy).code == 0
    effective = yaml.safe_load((project_copy / "merged" / "merge.yaml").read_text())
    assert effective["options"] == {"lambda": 0.7, "density": 0.4, "aggregate": "mean"}
    assert [entry["weight"] for entry in effective["adapters"]] == [0.5, 2.0, 0.5]
    assert osrm("merge", "--recipe", "merged/merge.yaml", "--out", "again", cwd=project_copy).code == 0
    for path in (project_copy / "merged").rglob("*"):
        if path.is_file():
            assert (
                path.read_bytes() == (project_copy / "again" / path.relative_to(project_copy / "merged")).read_bytes()
            )


@pytest.mark.parametrize("path", ["x" * 5000, "~nobody-of-that-name/adapter", "name=" + "x" * 5000], ids=len)
def test_a_path_that_cannot_be(project_copy, path):
    run = osrm("merge", path, "--out", "m", cwd=project_copy)
    assert run.code == 1
    assert "longer than a path may be" in run.error or "a user who is not known here" in run.error


def test_a_recipe_goes_before_osrm_toml(project_copy):
    recipe = {"method": "consensus", "adapters": list(GIVEN), "dtype": "float64"}
    recipe["options"] = {"lambda": 0.3, "mask-scale": 0.4, "rank": 3}
    (project_copy / "r.yaml").write_text(yaml.safe_dump(recipe))
    settings = 'method = "dare"\nlambda = 0.9\nmask-scale = 0.8\nrank = "auto"\nas = "model"\ndtype = "float16"\n'
    (project_copy / "osrm.toml").write_text(f"[merge]\n{settings}agreement = 3\n")
    assert osrm("merge", "--recipe", "r.yaml", "--mask-scale", "0.5", cwd=project_copy).code == 0
    effective = yaml.safe_load((project_copy / "merged" / "merge.yaml").read_text())
    assert effective["options"] == {"lambda": 0.3, "mask_scale": 0.5, "agreement": 3, "rank": 3}
    assert (effective["method"], effective["as"], effective["dtype"]) == ("consensus", "adapter", "float64")


def test_seed_from_the_environment_is_for_whoever_draws(project_copy):
    env = {"OSRM_SEED": "5"}
    assert osrm("merge", *GIVEN, "-m", "dare", env=env, cwd=project_copy).code == 0
    assert records.read_record(project_copy / "merged")["settings"]["options"]["seed"] == 5
    assert osrm("merge", *GIVEN, "-m", "cat", "--overwrite", env=env, cwd=project_copy).code == 0
    assert "seed" not in records.read_record(project_copy / "merged")["settings"]["options"]


def test_as_model(project_copy):
    run = osrm("merge", *GIVEN, "-m", "ties", "--as", "model", "--model", "base", cwd=project_copy)
    assert run.code == 0
    assert "exact" in run.stdout
    before, after = (load_file(project_copy / name / "model.safetensors") for name in ("base", "merged"))
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {
        f"encoder.layer.{i}.attention.self.{kind}.weight" for i in range(3) for kind in ("query", "value")
    }
    assert records.read_record(project_copy / "merged")["form"] == "model"


def test_task_aware_says_that_it_is_not_one_model(project_copy):
    run = osrm("merge", *GIVEN, "-m", "emr", cwd=project_copy)
    assert run.code == 0
    assert "warning: this is not one model" in run.stderr
    assert refused(project_copy, *GIVEN, "-m", "emr", "--as", "model", "--out", "x").error.startswith(
        "emr makes no single model"
    )


def nan(project_copy):
    file = project_copy / GIVEN[1] / "adapter_model.safetensors"
    tensors = load_file(file)
    next(tensor for name, tensor in sorted(tensors.items()) if "layer.2" in name).view(-1)[3] = float("nan")
    save_file(tensors, file)


def other_base(project_copy):
    for path, name in zip(GIVEN, ("org/bert", "org/bert", "org/roberta"), strict=True):
        edit(project_copy / path, base_model_name_or_path=name)


def twice(project_copy):
    provenance.write_record(project_copy / GIVEN[0], {"task": {"name": "sst2", **TASK}})


def escape(project_copy):
    provenance.write_record(project_copy / GIVEN[0], {"task": {"name": "../../sst2", **TASK}})


def nothing(project_copy):
    pass


REFUSALS = {
    "no adapters": (nothing, [], "no adapters to merge"),
    "missing": (nothing, ["nowhere/at/all"], "nowhere/at/all is missing"),
    "no config": (
        lambda project_copy: (project_copy / GIVEN[0] / "adapter_config.json").unlink(),
        GIVEN,
        "adapter_config.json is missing",
    ),
    "nan": (nan, GIVEN, "NaN or infinity in base_model.model.bert.encoder.layer.2"),
    "dora": (
        lambda project_copy: edit(project_copy / GIVEN[0], use_dora=True),
        GIVEN,
        "DoRA rescales the whole weight",
    ),
    "other base": (other_base, GIVEN, "adapters/cola belongs to base model org/bert, but adapters/sst2 to org/roberta"),
    "same task twice": (twice, GIVEN, "adapters/cola and adapters/sst2 are both adapters of 'sst2'"),
    "task name outside": (escape, GIVEN, "task.name: string should match pattern"),
    "same adapter twice": (nothing, [GIVEN[0], GIVEN[0]], "are both adapters of 'cola'"),
    "unknown method": (nothing, [*GIVEN, "-m", "tie"], "unknown method 'tie'"),
    "unused option": (nothing, [*GIVEN, "-m", "cat", "--density", "0.2"], "method cat does not use --density"),
    "rank of cat": (nothing, [*GIVEN, "-m", "cat", "--rank", "2"], "method cat does not use --rank"),
    "no need met": (nothing, [*GIVEN, "-m", "regmean"], "method regmean needs second moments"),
    "weight of nobody": (nothing, [*GIVEN, "--weight", "rte=1"], "--weight rte=1: no adapter has that name"),
    "weight twice": (
        nothing,
        [*GIVEN, "--weight", "cola=1", "--weight", "cola=2"],
        "--weight cola=2: cola has a weight",
    ),
    "weight no number": (nothing, [*GIVEN, "--weight", "cola"], "--weight cola, expected NAME=NUMBER"),
    "weight nan": (nothing, [*GIVEN, "--weight", "cola=nan"], "weight of adapter 'cola' is nan"),
    "lambda nan": (nothing, [*GIVEN, "--lambda", "nan"], "option 'lambda' is nan, expected a finite number"),
    "weights cancel": (
        nothing,
        [*GIVEN[:2], "-m", "average", "--weight", "cola=-1"],
        "the weights add up to 0, an average needs another sum",
    ),
    "float16 overflow": (
        nothing,
        [*GIVEN, "--lambda", "1e9", "--dtype", "float16"],
        "cannot be written as float16",
    ),
    "recipe twice": (nothing, [*GIVEN, "--recipe", "r.yaml"], "adapters are given twice"),
    "recipe missing": (nothing, ["--recipe", "r.yaml"], "r.yaml is missing"),
    "model unknown": (nothing, [*GIVEN, "--as", "model"], "does not record its base model"),
}


@pytest.mark.parametrize(("prepare", "words", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(project_copy, prepare, words, message):
    prepare(project_copy)
    assert message in refused(project_copy, *words, "--quiet").error


def test_recipe_with_an_option_of_the_wrong_type(project_copy):
    values = {"method": "ties", "adapters": GIVEN, "options": {"density": "low"}}
    (project_copy / "r.yaml").write_text(yaml.safe_dump(values))
    assert (
        refused(project_copy, "--recipe", "r.yaml").error
        == "option 'density' is 'low', expected a share above 0, at most 1"
    )


def test_usage_errors_are_exit_2(project_copy):
    assert osrm("merge", *GIVEN, "--density", "2", cwd=project_copy).code == 2
    assert osrm("merge", *GIVEN, "--as", "gguf", cwd=project_copy).code == 2
