"""``osrm retrofit``: what is written, what it does to the update, adapters of other programs, and every refusal."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.features.features_file import FeaturesFile
from osrm_cli.retrofit import retrofit as room
from osrm_cli.storage import input_files, safetensors_writer
from tests.run_cli import listing, osrm
from tests.trained_adapters import bare, save

torch.set_num_threads(1)
TASKS = ("mood", "pair", "score")
ADAPTERS = tuple(f"adapters/{task}" for task in TASKS)
WEIGHTS = "adapter_model.safetensors"


def moment(folder, task, layer, name="second-moment"):
    return FeaturesFile.open(folder / f"features/{task}.safetensors").reader().read(layer, name)


def dense(folder, layer):
    return open_adapter(folder).delta(layer, torch.float64).dense()


def seen(W, C):
    """Size of an update on inputs with a second moment; layer norms leave no input along (1, ..., 1)."""
    return float((W @ C @ W.T).trace().clamp(min=0).sqrt())


def layers(folder):
    return list(open_adapter(folder).layers)


def retrofit(project_copy, *more):
    run = osrm("retrofit", *ADAPTERS, *more, "--json", "--quiet", cwd=project_copy)
    assert run.code == 0, run
    return json.loads(run.stdout)


def foreign(project_copy, tiny_model, text_tasks, folder, **settings):
    """An adapter as PEFT alone writes it: its folder is not named after the task, and it does not say it."""
    save(project_copy / "mood", tiny_model("bert"), "bert", text_tasks, **settings)
    shutil.move(project_copy / "mood", project_copy / folder)
    (project_copy / folder / "osrm.json").unlink()


def test_balanced_at_mu_1_merges_to_regmean(project_copy):
    for task in TASKS:  # moments of full rank, which the plain inverse below needs
        path = project_copy / f"features/{task}.safetensors"
        held = load_file(path)
        full = {name: C + 0.02 * torch.eye(16) for name, C in held.items() if name.endswith("second-moment")}
        safetensors_writer.save_tensors(path, {**held, **full}, input_files.read_safetensors_record(path))
    retrofit(project_copy, "--mu", 1)
    new = [f"retrofitted/{task}" for task in TASKS]
    assert osrm("merge", *new, "--lambda", 1, "--out", "ours", cwd=project_copy).code == 0
    assert (
        osrm("merge", *ADAPTERS, "-m", "regmean", "--alpha", 1, "--lambda", 1, "--out", "theirs", cwd=project_copy).code
        == 0
    )
    for layer in layers(project_copy / "theirs"):
        grams = torch.stack([moment(project_copy, task, layer) for task in TASKS])
        updates = torch.stack([dense(project_copy / "adapters" / task, layer) for task in TASKS])
        expected = (updates @ grams).sum(0) @ torch.linalg.inv(grams.sum(0))
        for found in ("ours", "theirs"):
            assert (dense(project_copy / found, layer) - expected).norm() < 1e-6 * expected.norm(), found
        assert (updates.sum(0) - expected).norm() > 0.1 * expected.norm()  # else nothing is tested


def test_balanced_changes_a_alone(project_copy):
    retrofit(project_copy, "--mu", 0.3)
    for task in TASKS:
        old, new = project_copy / "adapters" / task, project_copy / "retrofitted" / task
        assert (old / "adapter_config.json").read_bytes() == (new / "adapter_config.json").read_bytes()
        before, after = load_file(old / WEIGHTS), load_file(new / WEIGHTS)
        assert before.keys() == after.keys()
        for name in before:
            assert torch.equal(before[name], after[name]) == ("lora_A" not in name), name


@pytest.mark.parametrize("method", ["balanced", "projection"])
def test_numbers_are_those_of_the_dense_updates(project_copy, method):
    told = retrofit(project_copy, "--method", method)["adapters"]
    for task in TASKS:
        sums = torch.zeros(4, dtype=torch.float64)
        for layer in layers(project_copy / "adapters" / task):
            old, new = dense(project_copy / "adapters" / task, layer), dense(project_copy / "retrofitted" / task, layer)
            own, *rest = (moment(project_copy, name, layer) for name in sorted(TASKS, key=lambda name: name != task))
            out = sum(C / C.trace() for C in rest)
            cases = ((new - old, own), (old, own), (new, out), (old, out))
            sums += torch.stack([(W @ C @ W.T).trace() for W, C in cases])
        assert told[task]["own"] == pytest.approx(float((sums[0] / sums[1]).sqrt()), rel=1e-4)
        assert told[task]["others"] == pytest.approx(float(sums[2] / sums[3]), rel=1e-4)
        facts = json.loads((project_copy / "retrofitted" / task / "osrm.json").read_text())
        assert facts["changed"] == {"own": told[task]["own"], "others": told[task]["others"]}


def test_mu_decides_between_own_task_and_others(project_copy):
    found = [retrofit(project_copy, "--mu", mu, "--out", f"mu{mu}")["adapters"]["mood"] for mu in (0, 0.1, 1, 10)]
    assert found[0]["own"] < 1e-6
    assert found[0]["others"] == pytest.approx(1)
    own, others = ([row[key] for row in found] for key in ("own", "others"))
    assert own == sorted(own)
    assert others == sorted(others, reverse=True)
    assert others[-1] < 0.5
    run = osrm("retrofit", *ADAPTERS, "--mu", 10, "--overwrite", cwd=project_copy)
    warned = [line for line in run.stderr.splitlines() if "of the update on its own inputs has changed" in line]
    assert any(line.startswith(f"warning: mood: {own[-1]:.0%} of") for line in warned)
    assert "has changed" not in osrm("retrofit", *ADAPTERS, "--mu", 0, "--overwrite", cwd=project_copy).stderr


@pytest.mark.parametrize("objective", ["osrm", "gevd", "random-orthonormal"])
def test_projection_is_the_least_squares_fit_on_the_start_s_a(project_copy, objective):
    retrofit(project_copy, "--method", "projection", "--objective", objective, "--seed", 3)
    args = ("--objective", objective, "--rank", 2, "--seed", 3, "--out", "new")
    assert osrm("init", "--each", *args, cwd=project_copy).code == 0
    for task in TASKS:
        for layer in layers(project_copy / "adapters" / task):
            A = open_adapter(project_copy / "new" / task).lora_factors(layer, torch.float64).A
            old, found = (
                dense(project_copy / "adapters" / task, layer),
                dense(project_copy / "retrofitted" / task, layer),
            )
            expected = old @ torch.linalg.pinv(A) @ A
            assert (found - expected).norm() < 1e-6 * old.norm()
            assert 0.05 < expected.norm() / old.norm() < 0.95  # it is no small loss


def test_tokenizer_and_chat_template_come_along(project_copy):
    (project_copy / "adapters/mood/chat_template.jinja").write_text("{{ messages }}")
    (project_copy / "adapters/mood/additional_chat_templates").mkdir()
    (project_copy / "adapters/mood/additional_chat_templates/tool.jinja").write_text("x")
    retrofit(project_copy)
    assert (project_copy / "retrofitted/mood/chat_template.jinja").read_text() == "{{ messages }}"
    assert (project_copy / "retrofitted/mood/additional_chat_templates/tool.jinja").read_text() == "x"
    assert not (project_copy / "retrofitted/pair/chat_template.jinja").exists()


def test_eval_and_merge_go_on_with_the_result(project_copy):
    retrofit(project_copy)
    shutil.rmtree(project_copy / "features")
    assert osrm("eval", "retrofitted/score", cwd=project_copy).code == 0
    run = osrm("merge", *(f"retrofitted/{task}" for task in TASKS), "--out", "m", cwd=project_copy)
    assert run.code == 0
    run = osrm("eval", "m", "--json", cwd=project_copy)
    assert run.code == 0
    alone = json.loads((project_copy / "retrofitted/score/scores.json").read_text())["tasks"]["score"]["headline"]
    assert json.loads(run.stdout)["tasks"]["score"]["single"] == pytest.approx(alone)
    facts = json.loads((project_copy / "retrofitted/mood/osrm.json").read_text())
    before = json.loads((project_copy / "adapters/mood/osrm.json").read_text())
    assert (facts["task"], facts["data"], facts["base"]) == (before["task"], before["data"], before["base"])
    assert facts["settings"] == {"method": "balanced", "mu": 0.3, "max_length": before["settings"]["max_length"]}
    paths = ["adapters/mood", *(f"features/{task}.safetensors" for task in TASKS)]
    assert [entry["path"] for entry in facts["inputs"]] == paths


def test_mixed_ranks_and_scalings_of_another_program(project_copy, tiny_model, text_tasks):
    pattern = {"rank_pattern": {"layer.1.attention.self.query": 5}, "alpha_pattern": {"0.attention.self.value": 11}}
    foreign(project_copy, tiny_model, text_tasks, "x/run-7", use_rslora=True, lora_alpha=6, **pattern)
    for method in ("balanced", "projection"):
        args = ["x/run-7", "--task", "mood=x/run-7/", "--method", method, "--out", method, "--seed", 1]
        args += ["--mu", 1] if method == "balanced" else []
        run = osrm("retrofit", *args, cwd=project_copy)
        assert run.code == 0, run
        base = bare(tiny_model("bert"), "mood")
        model = PeftModel.from_pretrained(base, str(project_copy / method / "mood"))
        for layer in layers(project_copy / "x/run-7"):
            found = model.base_model.model.get_submodule(layer).get_delta_weight("default").double()
            old = dense(project_copy / "x/run-7", layer)
            if method == "balanced":
                own, *rest = (moment(project_copy, name, layer) for name in TASKS)
                expected = old @ own @ torch.linalg.pinv(own + sum(rest), rtol=1e-6, hermitian=True)
            else:
                A = open_adapter(project_copy / method / "mood").lora_factors(layer, torch.float64).A
                expected = old @ torch.linalg.pinv(A) @ A
            everything = sum(moment(project_copy, name, layer) for name in TASKS)
            assert seen(found - expected, everything) < 1e-5 * seen(old, everything)
        assert json.loads((project_copy / method / "mood/osrm.json").read_text())["task"]["labels"]
        assert osrm("eval", f"{method}/mood", cwd=project_copy).code == 0


def test_the_folder_s_name_says_the_task(project_copy, tiny_model, text_tasks):
    save(project_copy / "x/mood", tiny_model("bert"), "bert", text_tasks)
    (project_copy / "x/mood/osrm.json").unlink()
    assert osrm("retrofit", "x/mood", cwd=project_copy).code == 0
    assert open_adapter(project_copy / "retrofitted/mood").name == "mood"


def test_half_precision_stays(project_copy, tiny_model, text_tasks):
    save(project_copy / "x/mood", tiny_model("bert"), "bert", text_tasks)
    path = project_copy / "x/mood" / WEIGHTS
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    assert osrm("retrofit", "x/mood", cwd=project_copy).code == 0
    assert {tensor.dtype for tensor in load_file(project_copy / "retrofitted/mood" / WEIGHTS).values()} == {
        torch.bfloat16
    }


def test_a_sketch_serves_and_a_small_one_warns(project_copy):
    tasks = [word for task in TASKS for word in ("--task", task)]
    for size in (16, 4):
        args = ("--samples", 20, "--statistic", f"sketch:{size}", "--out", f"features-{size}")
        assert osrm("collect", *tasks, *args, cwd=project_copy).code == 0
    retrofit(project_copy)
    run = osrm("retrofit", *ADAPTERS, "--features", "features-16", "--out", "s", cwd=project_copy)
    assert (run.code, run.stderr) == (0, "")
    for layer in layers(project_copy / "s/mood"):  # as many rows as inputs: nothing is left out but digits
        found, expected, C = (
            *(dense(project_copy / out / "mood", layer) for out in ("s", "retrofitted")),
            moment(project_copy, "mood", layer),
        )
        assert seen(found - expected, C) < 1e-3 * seen(expected, C)
    run = osrm("retrofit", *ADAPTERS, "--features", "features-4", "--out", "t", cwd=project_copy)
    assert run.code == 0
    assert "warning: the sketches hold 12 rows for inputs of width 16" in run.stderr


def test_order_of_adapters_is_irrelevant_and_dry_run_writes_nothing(project_copy):
    before = listing(project_copy)
    run = osrm("retrofit", *ADAPTERS, "--dry-run", "--json", cwd=project_copy)
    assert json.loads(run.stdout) == {"would_write": [f"retrofitted/{task}" for task in TASKS]}
    assert listing(project_copy) == before
    retrofit(project_copy)
    assert osrm("retrofit", *reversed(ADAPTERS), "--out", "again", cwd=project_copy).code == 0
    for name in listing(project_copy / "again"):
        assert (project_copy / "again" / name).read_bytes() == (project_copy / "retrofitted" / name).read_bytes()


def test_table_on_stdout(project_copy):
    run = osrm("retrofit", *ADAPTERS, cwd=project_copy)
    assert "Retrofitted (method balanced, mu 0.3)" in run.stdout
    assert "retrofitted/mood" in run.stdout


def refuse(project_copy, *words):
    before = listing(project_copy)
    run = osrm("retrofit", *words, cwd=project_copy)
    assert run.code == 1
    assert listing(project_copy) == before
    return run.error, run.stderr.partition("hint: ")[2].strip()


def test_what_cannot_work_is_refused(project_copy, tiny_model):
    error, _ = refuse(project_copy, *ADAPTERS, "--method", "projection", "--mu", 2)
    assert error == "method projection does not use --mu"
    error, _ = refuse(project_copy, *ADAPTERS, "--objective", "gevd")
    assert error == "method balanced does not use --objective"
    error, hint = refuse(project_copy, *ADAPTERS, "--task", "mood=adapters/none")
    assert error == "--task mood=adapters/none: expected TASK=ADAPTER with one of the adapters"
    assert "adapters/mood" in hint
    error, hint = refuse(project_copy, "adapters/mood", "--task", "other=adapters/mood")
    assert error == "adapters/mood is of task 'other', the features are of: mood, pair, score"
    assert hint.startswith("osrm collect --task other")
    shutil.copytree(project_copy / "adapters/mood", project_copy / "twin")
    assert "are both adapters of 'mood'" in refuse(project_copy, "adapters/mood", "twin")[0]
    (project_copy / "retrofitted/pair").mkdir(parents=True)
    assert refuse(project_copy, *ADAPTERS)[0] == "retrofitted/pair exists already"


def test_means_cannot_be_balanced(project_copy):
    for task in TASKS:
        run = osrm("collect", "--task", task, "--statistic", "mean", "--out", "means", cwd=project_copy)
        assert run.code == 0
    error, hint = refuse(project_copy, *ADAPTERS, "--features", "means")
    assert error == ("method balanced needs second-moment or sketch of every task, means/mood.safetensors holds mean")
    assert hint == "osrm collect --task mood --task pair --task score --statistic second-moment --overwrite"
    assert osrm("retrofit", *ADAPTERS, "--features", "means", "-m", "projection", cwd=project_copy).code == 0


def test_features_that_do_not_fit_are_refused(project_copy, tiny_model, text_tasks):
    foreign(project_copy, tiny_model, text_tasks, "x/mood", target_modules=["query", "key", "dense"])
    error, hint = refuse(project_copy, "x/mood")
    assert error.startswith("features/mood.safetensors has nothing for bert.encoder.layer.0.attention.output.dense")
    assert hint.startswith("osrm collect --task mood --task pair --task score --overwrite --target-modules dense")
    config = project_copy / "adapters/mood/adapter_config.json"
    config.write_text(config.read_text().replace(str(tiny_model("bert")), "some/other"))
    (project_copy / "adapters/mood/osrm.json").unlink()
    assert "belongs to base model some/other, but features/mood" in refuse(project_copy, "adapters/mood")[0]


def test_one_task_alone_is_refused(project_copy):
    for task in ("pair", "score"):
        (project_copy / f"features/{task}.safetensors").unlink()
    assert refuse(project_copy, "adapters/mood")[0] == "features holds no features of a task other than 'mood'"


@pytest.mark.parametrize("option", ["mu", "eps"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_numbers_are_finite(project_copy, option, value, monkeypatch):
    monkeypatch.chdir(project_copy)
    with pytest.raises(OsrmError, match=f"--{option} is .*, expected 0 or more"):
        room.retrofit_adapters(ADAPTERS, **{option: value})


def test_adapters_are_all_written_or_none(project_copy, monkeypatch):
    write = room.write_adapter

    def fail_for_pair(folder, *rest):
        if folder.name == "pair":
            raise OsrmError("no more")
        write(folder, *rest)

    monkeypatch.setattr(room, "write_adapter", fail_for_pair)
    assert refuse(project_copy, *ADAPTERS)[0] == "no more"
