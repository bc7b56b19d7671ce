"""``osrm diagnose``: its numbers against passes over the real tokens, what it predicts, what it warns of."""

import json
import shutil

import pytest
import scipy.linalg
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from osrm_cli.diagnosis import diagnose as room
from osrm_cli.errors import OsrmError
from osrm_cli.storage import input_files, safetensors_writer
from osrm_cli.tasks.loading import draw_examples, load_split
from tests import trained_adapters
from tests.run_cli import listing, osrm

torch.set_num_threads(1)
TASKS = ("mood", "pair", "score")
ADAPTERS = tuple(f"adapters/{task}" for task in TASKS)
WEIGHTS = "adapter_model.safetensors"
LAYERS = [f"bert.encoder.layer.{i}.attention.self.{name}" for i in (0, 1) for name in ("query", "value")]


def diagnose(project_copy, *words):
    run = osrm("diagnose", "features", *words, "--overwrite", "--json", "--quiet", cwd=project_copy)
    assert run.code == 0, run
    return json.loads(run.stdout)


def tokens(base, text_tasks, task):
    """Inputs of every target layer of the base model, for all tokens that the features were collected from."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [example.texts for example in draw_examples(load_split(task, text_tasks, "train"), 20, 0).examples]
    batch = tokenizer(*map(list, zip(*texts, strict=True)), padding=True, return_tensors="pt")
    model = AutoModelForSequenceClassification.from_pretrained(base).double().eval().requires_grad_(False)
    found = {}

    def watch(name):
        def see(layer, args):
            found[name] = args[0][batch["attention_mask"].bool()]

        model.get_submodule(name).register_forward_pre_hook(see)

    for name in LAYERS:
        watch(name)
    model(**batch)
    return model, found


def test_interference_is_that_of_forward_passes(project_copy, tiny_model, text_tasks):
    """The mean over all real tokens of ``||s B A x||^2 / ||W0 x||^2``, by hooks and PEFT's own update."""
    found = diagnose(project_copy, *ADAPTERS)
    for u in TASKS:
        base, inputs = tokens(tiny_model("bert"), text_tasks, u)
        for t in TASKS:
            bare = AutoModelForSequenceClassification.from_pretrained(
                tiny_model("bert"), num_labels=trained_adapters.LABELS[t]
            )
            adapted = PeftModel.from_pretrained(bare, str(project_copy / "adapters" / t))
            ratios = []
            for name in LAYERS:
                x, W = inputs[name], base.get_submodule(name).weight
                delta = adapted.base_model.model.get_submodule(name).get_delta_weight("default").detach().double()
                ratios.append(float((x @ delta.T).square().sum(1).mean() / (x @ W.T).square().sum(1).mean()))
                assert found["interference_by_layer"][name][t][u] == pytest.approx(ratios[-1], rel=1e-5)
            assert found["interference"][t][u] == pytest.approx(sum(ratios) / len(ratios), rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_interference_of_other_architectures(tmp_path, tiny_model, text_tasks, family):
    """Conv1D weights, square and not, are stored the other way round; T5's key and value share an input."""
    (tmp_path / "osrm.toml").write_text(f'model = "{tiny_model(family)}"\ndata = "{text_tasks}"\nquiet = true\n')
    names = [word for name in trained_adapters.TARGETS[family] for word in ("--target-modules", name)]
    kept = ("--statistic", "second-moment", "--samples", 20)
    assert osrm("collect", "--task", "mood", "--task", "pair", *names, *kept, cwd=tmp_path).code == 0
    for task in ("mood", "pair"):
        trained_adapters.save(tmp_path / "adapters" / task, tiny_model(family), family, text_tasks)
    found = diagnose(tmp_path, "adapters/mood", "adapters/pair")
    texts = [example.texts[0] for example in draw_examples(load_split("mood", text_tasks, "train"), 20, 0).examples]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(family), padding_side="right")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    model = PeftModel.from_pretrained(
        trained_adapters.bare(tiny_model(family), "pair"), str(tmp_path / "adapters/pair")
    )
    model.base_model.model.config.pad_token_id = tokenizer.pad_token_id
    sums = {}

    def watch(name):
        def see(layer, args, output):
            x = args[0].detach()
            W = layer.get_delta_weight("default").detach()
            update = x @ (W.T if family == "t5" else W)
            bias = getattr(layer.base_layer, "bias", None)
            base = layer.base_layer(x).detach() - (0 if bias is None else bias.detach())
            mask = batch["attention_mask"].bool()
            for index, y in enumerate((update, base)):
                if y.shape[:2] == mask.shape:
                    sums.setdefault(name, [0, 0])[index] = float(y[mask].square().sum())

        model.base_model.model.get_submodule(name).register_forward_hook(see)

    for name in found["interference_by_layer"]:
        if "decoder" not in name:
            watch(name)
    with torch.no_grad(), model.disable_adapter():
        model(**batch)
    assert len(sums) >= 4
    for name, (update, base) in sums.items():
        assert found["interference_by_layer"][name]["pair"]["mood"] == pytest.approx(update / base, rel=1e-4)


def test_norms_are_those_of_the_dense_updates(project_copy, tiny_model):
    found = diagnose(project_copy, *ADAPTERS)["adapters"]["pair"]
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model("bert"), num_labels=3).requires_grad_(False)
    whole = sum(float(base.get_submodule(name).weight.square().sum()) for name in LAYERS) ** 0.5
    adapted = PeftModel.from_pretrained(base, str(project_copy / "adapters/pair")).base_model.model
    squares = sum(
        float(adapted.get_submodule(name).get_delta_weight("default").detach().square().sum()) for name in LAYERS
    )
    assert found["norm"] == pytest.approx(squares**0.5, rel=1e-5)
    assert found["relative_norm"] == pytest.approx(squares**0.5 / whole, rel=1e-5)


def test_overlap_equals_the_plain_formulas(project_copy, tiny_model, text_tasks):
    found = diagnose(project_copy, "--energy", 0.9)
    group = found["groups"][1]
    assert group["layers"] == LAYERS[2:]  # query and value share their input
    moments = {task: (x := tokens(tiny_model("bert"), text_tasks, task)[1][LAYERS[2]]).T @ x / len(x) for task in TASKS}
    moments = {task: (C / C.trace()).numpy() for task, C in moments.items()}

    def space(C):
        values, vectors = scipy.linalg.eigh(C)
        kept = next(k for k in range(1, 17) if values[-k:].sum() >= 0.9 * values.sum())
        return vectors[:, -kept:]

    for t in TASKS:
        out = sum(C for task, C in moments.items() if task != t) / 2
        Q = space(out)
        room = group["rooms"][t]
        assert room["others_rank"] == Q.shape[1]
        assert room["free"] == pytest.approx(1 - (Q.T @ moments[t] @ Q).trace(), rel=1e-4)
        assert room["leak"] == pytest.approx(1 - (Q.T @ out @ Q).trace(), rel=1e-4)
        for u in set(TASKS) - {t}:
            P, pair = space(moments[u]), group["pairs"][t][u]
            assert pair["share"] == pytest.approx((P.T @ moments[t] @ P).trace(), rel=1e-4)
            angles = sorted(scipy.linalg.subspace_angles(space(moments[t]), P) * 180 / torch.pi)
            assert [pair["angles"][0], pair["angles"][-1]] == pytest.approx([angles[0], angles[-1]], abs=1e-2)
    gains = {task: row["gain"] for task, row in found["tasks"].items()}
    for task, row in found["tasks"].items():
        rooms = [group["rooms"][task] for group in found["groups"]]
        assert gains[task] == pytest.approx(sum(r["free"] for r in rooms) / sum(r["leak"] for r in rooms))
        assert row["helps"] == (gains[task] >= 2)
        least = min(rooms, key=lambda room: room["free"])["free"]
        assert row["least"]["free"] == least <= row["most"]["free"]


def rewrite(project_copy, task, moment, width=16):
    """Give a task's features a second moment of our own in every layer."""
    path = project_copy / f"features/{task}.safetensors"
    held = load_file(path)
    new = {name: moment.clone() for name in held if name.endswith("second-moment")}
    safetensors_writer.save_tensors(path, {**held, **new}, input_files.read_safetensors_record(path))


def diagonal(first, last, tail=1e-3):
    return torch.diag(torch.tensor([1.0 if first <= i < last else tail for i in range(16)]))


def test_tasks_in_different_directions_are_told_from_tasks_in_the_same(project_copy):
    for i, task in enumerate(TASKS):
        rewrite(project_copy, task, diagonal(5 * i, 5 * i + 5))
    found = diagnose(project_copy)
    assert all(row["helps"] and row["free"] > 0.9 for row in found["tasks"].values())
    assert found["shares"]["mood"]["pair"] < 0.01
    run = osrm("diagnose", "features", "--overwrite", cwd=project_copy)
    assert "mood, pair, score: An initialization can help" in run.stdout
    assert f" 0 {found['tasks']['mood']['least']['free']:.1%}" in run.stdout  # the layer's short name
    for task in TASKS:
        rewrite(project_copy, task, diagonal(0, 8))
    found = diagnose(project_copy)
    assert not any(row["helps"] for row in found["tasks"].values())
    assert {round(row["gain"], 6) for row in found["tasks"].values()} == {1.0}
    assert found["groups"][0]["pairs"]["mood"]["pair"]["overlap"] == pytest.approx(1)


def listen(project_copy, task, **rows):
    """Let an adapter's A read given inputs with given weights; B adds them up."""
    path = project_copy / f"adapters/{task}" / WEIGHTS
    held = load_file(path)
    for name in held:
        if "lora_A" in name:
            held[name] = torch.zeros(2, 16)
            for index, weight in rows.items():
                held[name][0, int(index[1:])] = weight
        if "lora_B" in name:
            held[name] = torch.ones(16, 2)
    save_file(held, path)


def test_the_pairs_that_will_hurt_come_first(project_copy):
    """mood reads what pair is fed with, pair a little of what score is, score only its own."""
    for i, task in enumerate(TASKS):
        rewrite(project_copy, task, diagonal(5 * i, 5 * i + 5))
    listen(project_copy, "mood", i0=1.0, i5=2.0)
    listen(project_copy, "pair", i6=1.0, i11=0.5)
    listen(project_copy, "score", i12=1.0)
    found = diagnose(project_copy, *ADAPTERS)
    pairs = [(row["update"], row["inputs"]) for row in found["prediction"]["pairs"]]
    assert pairs[:2] == [("mood", "pair"), ("pair", "score")]
    assert found["prediction"]["pairs"][0]["to_own"] == pytest.approx(4, rel=0.02)
    assert found["prediction"]["pairs"][1]["to_own"] == pytest.approx(0.25, rel=0.02)
    worst = [(row["task"], row["worst"]) for row in found["prediction"]["tasks"]]
    assert worst[:2] == [("pair", "mood"), ("score", "pair")]
    run = osrm("diagnose", "features", *ADAPTERS, "--overwrite", cwd=project_copy)
    assert "Worst pairs: mood on pair x4, pair on score x0.25" in run.stdout


def scores(path, **drops):
    more = {"metrics": {"accuracy": 90.0}, "examples": 10, "sha256": ""}
    rows = {task: {"single": 90.0, "headline": 90.0 - drop, **more} for task, drop in drops.items()}
    record = {"command": "eval", "settings": {"split": "dev"}, "method": "ties", "options": {}, "calibrated": False}
    path.write_text(json.dumps({**record, "tasks": rows, "adapters": {task: {"path": task} for task in drops}}))


def test_measured_drops_are_ranked_against_the_prediction(project_copy):
    order = [row["task"] for row in diagnose(project_copy, *ADAPTERS)["prediction"]["tasks"]]
    matrix = diagnose(project_copy, *ADAPTERS)["interference"]
    hurt = sorted(TASKS, key=lambda task: sum(matrix[other][task] for other in TASKS if other != task))
    scores(project_copy / "good.json", **{task: 5.0 * rank for rank, task in enumerate(hurt)})
    scores(project_copy / "bad.json", **{task: -5.0 * rank for rank, task in enumerate(hurt)})
    scores(project_copy / "two.json", mood=1.0, pair=2.0)
    args = [word for name in ("good", "bad", "two") for word in ("--scores", f"{name}.json")]
    found = diagnose(project_copy, *ADAPTERS, *args)["measured"]
    assert [(row["n"], row["rho"]) for row in found["merges"]] == [(3, pytest.approx(1)), (3, pytest.approx(-1))]
    assert found["merges"][0]["p"] == pytest.approx(2 / 6)
    assert found["pairs"] == {"n": 2, "rho": None, "p": None, "to_own": {"rho": None, "p": None}}
    run = osrm("diagnose", "features", *ADAPTERS, *args, "--overwrite", cwd=project_copy)
    assert "good.json: rank correlation of prediction and drop +1.00 (n 3, p 0.33); over the own energy " in run.stdout
    assert set(order) == set(TASKS)


def test_real_scores_are_read(project_copy):
    assert osrm("eval", "merged", cwd=project_copy).code == 0
    found = diagnose(project_copy, *ADAPTERS, "--scores", "merged/scores.json")["measured"]
    assert found["merges"][0]["n"] == 3
    rows = json.loads((project_copy / "merged/scores.json").read_text())["tasks"]
    assert found["merges"][0]["drops"] == {task: row["single"] - row["headline"] for task, row in rows.items()}


def test_drift_from_the_start_from_the_record_or_unknown(project_copy):
    found = diagnose(project_copy, *ADAPTERS)["adapters"]["mood"]
    log = json.loads((project_copy / "adapters/mood/training.json").read_text())
    assert (found["drift_from"], found["objective"], found["path"]) == ("start", "osrm", "starts/mood")
    assert found["drift"] == pytest.approx(log["drift"]["overall"], rel=1e-5)
    start, end = (load_file(project_copy / name / "mood" / WEIGHTS) for name in ("starts", "adapters"))
    names = [name for name in start if "lora_A" in name]
    kept = [scipy.linalg.subspace_angles(start[name].T.numpy(), end[name].T.numpy()) for name in names]
    assert found["kept"] == pytest.approx(sum(float((torch.tensor(a).cos() ** 2).mean()) for a in kept) / 4, rel=1e-4)
    assert found["chance"] == 2 / 16
    assert found["caught"] < 1e-6
    (project_copy / "starts/mood/more.txt").write_text("no longer what it was")
    found = diagnose(project_copy, *ADAPTERS)["adapters"]["mood"]
    assert (found["drift_from"], found["drift"], found["path"]) == ("training.json", log["drift"]["overall"], None)
    shutil.rmtree(project_copy / "starts")
    (project_copy / "adapters/mood/training.json").unlink()
    found = diagnose(project_copy, *ADAPTERS)["adapters"]["mood"]
    assert (found["drift_from"], found["drift"], found["kept"]) == (None, None, None)


def warnings(project_copy, *words):
    run = osrm("diagnose", "features", *words, "--overwrite", "--quiet", cwd=project_copy)
    assert run.code == 0, run
    return [line for line in run.stderr.splitlines() if line.startswith("warning: ")]


def test_nothing_to_warn_of(project_copy):
    assert warnings(project_copy, *ADAPTERS) == []


def test_features_that_the_start_was_not_made_from(project_copy):
    path = project_copy / "features/pair.safetensors"
    held = load_file(path)
    start = load_file(project_copy / "starts/mood" / WEIGHTS)
    for layer in {name.rpartition(".")[0] for name in held}:
        held[f"{layer}.mean"] = start[f"base_model.model.{layer}.lora_A.weight"][0].clone()
    safetensors_writer.save_tensors(path, held, input_files.read_safetensors_record(path))
    found = warnings(project_copy, *ADAPTERS)
    assert any("starts/mood: A captures" in line and "that 'osrm' avoids" in line for line in found)
    assert any("starts/mood: not made from these features of pair" in line for line in found)
    assert not any("starts/pair" in line for line in found)  # it did not read pair's own features


def test_a_start_that_was_not_applied(project_copy):
    path = project_copy / "adapters/mood" / WEIGHTS
    held, start = load_file(path), load_file(project_copy / "starts/mood" / WEIGHTS)
    for name in [name for name in held if "lora_A" in name]:
        held[name] = torch.linalg.svd(start[name]).Vh[-2:].contiguous()
    save_file(held, path)
    (line,) = warnings(project_copy, *ADAPTERS)
    assert line.startswith("warning: adapters/mood: A shares 0% of its directions with its start, a random A 12%")


def test_too_few_tokens(project_copy):
    assert osrm("collect", "--samples", 1, "--overwrite", cwd=project_copy).code == 0
    found = warnings(project_copy)
    assert found
    assert all("too few tokens" in line and "for width 16" in line for line in found)


@pytest.mark.parametrize("statistic", ["samples", "mean", "sketch:16"])
def test_other_statistics_serve_with_a_statement(project_copy, statistic):
    whole = diagnose(project_copy, *ADAPTERS)
    args = ("--samples", 20, "--statistic", statistic, "--overwrite")
    assert osrm("collect", *args, cwd=project_copy).code == 0
    shutil.rmtree(project_copy / "starts")
    found = diagnose(project_copy, *ADAPTERS)
    assert set(found["statistic"].values()) == {statistic}
    kind = statistic.partition(":")[0]
    if kind == "sketch":  # as many rows as inputs: the same numbers
        assert found["interference"]["mood"]["pair"] == pytest.approx(whole["interference"]["mood"]["pair"], rel=1e-4)
        assert found["tasks"]["mood"]["free"] == pytest.approx(whole["tasks"]["mood"]["free"], abs=1e-4)
    else:
        (line,) = warnings(project_copy)
        assert line.startswith(f"warning: read from {kind}, so the numbers describe the")
    if kind == "mean":
        assert {(row["effective_rank"], row["gain"], row["helps"]) for row in found["tasks"].values()} == {
            (1.0, None, None)
        }
        run = osrm("diagnose", "features", "--overwrite", cwd=project_copy)
        assert "cannot be told from these features" in run.stdout


def test_adapters_of_other_programs_and_of_some_of_the_tasks(project_copy, tiny_model, text_tasks):
    settings = {"target_modules": ["value"], "use_rslora": True}
    trained_adapters.save(project_copy / "mood", tiny_model("bert"), "bert", text_tasks, **settings)
    shutil.move(project_copy / "mood", project_copy / "run-7")
    (project_copy / "run-7/osrm.json").unlink()
    found = diagnose(project_copy, "run-7", "adapters/pair", "--task", "mood=run-7")
    assert list(found["interference"]) == ["mood", "pair"]
    assert found["interference_by_layer"][LAYERS[0]]["mood"] == {"mood": 0, "pair": 0}  # it has no query
    assert found["adapters"]["mood"]["objective"] is None
    assert set(found["tasks"]) == set(TASKS)


def test_same_bytes_in_any_order_json_in_one_line_dry_run_silent(project_copy):
    run = osrm("diagnose", "features", *ADAPTERS, "--json", "--quiet", cwd=project_copy)
    assert (run.stderr, run.stdout.count("\n")) == ("", 1)
    assert listing(project_copy / "diagnosis") == {"diagnosis.json", "overlap.png", "interference.png"}
    assert osrm("diagnose", "features", *reversed(ADAPTERS), "--out", "again", cwd=project_copy).code == 0
    for name in listing(project_copy / "diagnosis"):
        assert (project_copy / "again" / name).read_bytes() == (project_copy / "diagnosis" / name).read_bytes()
    facts = json.loads((project_copy / "diagnosis/diagnosis.json").read_text())
    assert facts["interference"] == json.loads(run.stdout)["interference"]
    assert {entry["path"] for entry in facts["inputs"]} == {
        *ADAPTERS,
        *(f"features/{task}.safetensors" for task in TASKS),
    }
    before = listing(project_copy)
    run = osrm("diagnose", "features", "--out", "new", "--dry-run", cwd=project_copy)
    assert run.stdout == "would write new: mood, pair, score\n"
    assert listing(project_copy) == before


def test_report_reads_it(project_copy):
    assert osrm("eval", "merged", "--task", "mood", "--task", "pair", "--predictions", cwd=project_copy).code == 0
    diagnose(project_copy, *ADAPTERS)
    run = osrm("report", "merged/scores.json", "diagnosis/diagnosis.json", cwd=project_copy)
    assert run.code == 0, run
    assert (project_copy / "report/interference.png").is_file()


def refuse(project_copy, *words):
    before = listing(project_copy)
    run = osrm("diagnose", *words, cwd=project_copy)
    assert run.code == 1
    assert listing(project_copy) == before
    return run.error, run.stderr.partition("hint: ")[2].strip()


def test_what_cannot_work_is_refused(project_copy, tiny_model):
    assert refuse(project_copy, "nowhere")[0] == "nowhere is missing"
    assert refuse(project_copy, "features", "--scores", "x.json")[0] == "--scores needs the adapters that were merged"
    assert refuse(project_copy, "features", *ADAPTERS, "--scores", "x.json")[0] == "x.json is missing"
    scores(project_copy / "x.json", other=1.0)
    assert (
        "x.json has task 'other', the adapters are of: mood, pair"
        in refuse(project_copy, "features", *ADAPTERS, "--scores", "x.json")[0]
    )
    error, _ = refuse(project_copy, "features", *ADAPTERS, "--model", tiny_model("roberta"))
    assert "was made for base model" in error
    (project_copy / "features/score.safetensors").unlink()
    error, hint = refuse(project_copy, "features", *ADAPTERS)
    assert error == "adapters/score is of task 'score', the features are of: mood, pair"
    assert hint.startswith("osrm collect --task score")
    (project_copy / "features/pair.safetensors").unlink()
    assert refuse(project_copy, "features")[0] == "features holds features of one task alone"


@pytest.mark.parametrize("energy", [float("nan"), 0.0, 1.5])
def test_energy_is_a_share(project_copy, energy):
    with pytest.raises(OsrmError, match=r"--energy is .*, expected 0\.01 to 1"):
        room.diagnose(project_copy / "features", energy=energy)
