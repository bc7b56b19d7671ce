import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from osrm_cli.errors import OsrmError
from osrm_cli.features.features_file import FeaturesReader
from osrm_cli.initialization import initialize
from osrm_cli.initialization.objectives.table import OBJECTIVES, Objective
from osrm_cli.storage import input_files, safetensors_writer
from tests.run_cli import listing, osrm

WEIGHTS = "adapter_model.safetensors"
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


def factors(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / WEIGHTS))


def change(path: Path, tensor: str | None = None, value: float = 0.0, **facts: object) -> None:
    """Write a features file again with something else in it."""
    old = input_files.read_safetensors_record(path)
    contents = load_file(path)
    if tensor:
        contents[tensor][0] = value
    safetensors_writer.save_tensors(path, contents, {**old, **facts})


def test_result_and_provenance(project_copy: Path) -> None:
    run = osrm("init", "--exclude", "mood", "--rank", 3, "--out", "new", "--json", cwd=project_copy)
    assert run.stdout.count("\n") == 1
    found = json.loads(run.stdout)
    assert found["starts"] == {"mood": "new/mood"}
    facts = json.loads((project_copy / "new/mood/osrm.json").read_text())
    assert facts["command"] == "init"
    assert [entry["path"] for entry in facts["inputs"]] == [
        f"features/{n}.safetensors" for n in ("mood", "pair", "score")
    ]
    assert facts["task"]["name"] == "mood"
    assert facts["settings"]["objective"] == "gevd"
    assert facts["settings"]["target_modules"] == ["query", "value"]
    config = json.loads((project_copy / "new/mood/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (3, 6, ["query", "value"])
    assert config["init_lora_weights"] is True


def test_alpha(project_copy: Path) -> None:
    assert osrm("init", "--exclude", "mood", "--alpha", 5, "--out", "new", cwd=project_copy).code == 0
    assert json.loads((project_copy / "new/mood/adapter_config.json").read_text())["lora_alpha"] == 5


@pytest.mark.parametrize("row", [r for r in OBJECTIVES if not r.needs_gradient], ids=lambda row: row.name)
def test_each_equals_exclude(project_copy: Path, row: Objective) -> None:
    """The same bytes; where the total minus the own second moment rounds otherwise, the same subspace."""
    assert osrm("init", "--each", "--objective", row.name, "--out", "each", cwd=project_copy).code == 0
    for task in ("mood", "pair", "score"):
        assert osrm("init", "--exclude", task, "--objective", row.name, "--out", "one", cwd=project_copy).code == 0
        ours, theirs = project_copy / "each" / task, project_copy / "one" / task
        if "second-moment" not in row.statistics or row.name == "osrm":  # the means serve the paper's objective
            assert (ours / WEIGHTS).read_bytes() == (theirs / WEIGHTS).read_bytes()
        for name, A in factors(ours).items():
            B = factors(theirs)[name]
            if "lora_A" in name:
                assert (A.T @ A - B.T @ B).norm() < 1e-5
        assert (ours / "osrm.json").read_bytes() == (theirs / "osrm.json").read_bytes()


@pytest.mark.parametrize("name", ["osrm", "gevd"])
def test_second_moments_give_the_same_subspace_each_or_one(project_copy: Path, name: str) -> None:
    osrm("collect", "--statistic", "second-moment", "--out", "moments", cwd=project_copy)
    common = ("--features", "moments", "--objective", name, "--rank", 4)
    assert osrm("init", "--each", *common, "--out", "each", cwd=project_copy).code == 0
    assert osrm("init", "--exclude", "pair", *common, "--out", "one", cwd=project_copy).code == 0
    for layer, A in factors(project_copy / "each/pair").items():
        B = factors(project_copy / "one/pair")[layer]
        if "lora_A" in layer:
            assert (A.T @ A - B.T @ B).norm() < 1e-6


@pytest.mark.parametrize("name", ["osrm", "gevd", "eva", "kaiming"])
def test_each_reads_every_tensor_once(project_copy: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[tuple[str, str]] = Counter()
    read = FeaturesReader.read

    def counted(self: FeaturesReader, layer: str, statistic: str) -> torch.Tensor:
        seen[self.features.task, f"{self.features.layers[layer].source}.{statistic}"] += 1
        return read(self, layer, statistic)

    monkeypatch.setattr(FeaturesReader, "read", counted)
    assert osrm("init", "--each", "--objective", name, "--out", "new", cwd=project_copy).code == 0
    assert len(seen) == (0 if name == "kaiming" else 3 * 2)  # tasks, distinct inputs
    assert set(seen.values()) <= {1}


def test_start_does_not_depend_on_the_own_features(project_copy: Path) -> None:
    assert osrm("init", "--exclude", "mood", "--objective", "osrm", "--out", "with", cwd=project_copy).code == 0
    (project_copy / "features/mood.safetensors").unlink()
    run = osrm(
        "init", "--exclude", "mood", "--out", "without", cwd=project_copy
    )  # nothing else can be the default then
    assert run.code == 0
    assert run.stdout.endswith("objective osrm\n")
    assert "warning: there are no features of a task 'mood'" in run.stderr
    assert (project_copy / "with/mood" / WEIGHTS).read_bytes() == (project_copy / "without/mood" / WEIGHTS).read_bytes()


@pytest.mark.parametrize(("statistic", "expected"), [("mean", "osrm"), ("samples", "gevd"), ("second-moment", "gevd")])
def test_default_is_what_the_features_serve(project_copy: Path, statistic: str, expected: str) -> None:
    osrm("collect", "--statistic", statistic, "--out", "some", cwd=project_copy)
    run = osrm("init", "--each", "--features", "some", "--out", "new", "--json", cwd=project_copy)
    assert run.code == 0, run
    assert json.loads(run.stdout)["objective"] == expected


def test_misspelled_task_is_told_what_may_be_meant(project_copy: Path) -> None:
    run = osrm("init", "--exclude", "modo", "--dry-run", cwd=project_copy)
    assert "did you mean 'mood'?" in run.stderr


def test_rank_scale_and_seed(project_copy: Path) -> None:
    for out, more in (("a", ()), ("b", ("--seed", 1)), ("c", ("--a-scale", "kaiming")), ("d", ("--a-scale", 0.25))):
        args = ("--objective", "osrm", "--rank", 4, "--out", out, *more)
        assert osrm("init", "--exclude", "mood", *args, cwd=project_copy).code == 0
    A = {out: factors(project_copy / out / "mood")[f"{QUERY}.lora_A.weight"] for out in "abcd"}
    torch.testing.assert_close(A["a"] @ A["a"].T, torch.eye(4), atol=1e-5, rtol=0)
    assert not torch.allclose(A["a"], A["b"])
    torch.testing.assert_close(A["c"], A["a"] / 3**0.5)
    torch.testing.assert_close(A["d"], A["a"] / 4)
    assert not any(tensor.any() for name, tensor in factors(project_copy / "a/mood").items() if "lora_B" in name)


@pytest.mark.parametrize("name", ["osrm", "random-orthonormal", "kaiming"])
def test_match_output_reads_the_own_features_beside(project_copy: Path, name: str) -> None:
    """``tr(A C_in A^T) = r tr(C_in) / (3 d_in)``, also for a control that reads nothing by itself."""
    osrm("collect", "--statistic", "second-moment", "--out", "moments", cwd=project_copy)
    args = ("--features", "moments", "--rank", 2, "--objective", name, "--a-scale", "match-output")
    run = osrm("init", "--exclude", "mood", *args, "--out", "new", cwd=project_copy)
    assert run.code == 0, run
    C = load_file(project_copy / "moments/mood.safetensors")[f"{QUERY.removeprefix('base_model.model.')}.second-moment"]
    A = factors(project_copy / "new/mood")[f"{QUERY}.lora_A.weight"]
    torch.testing.assert_close((A @ C @ A.T).trace(), 2 * C.trace() / (3 * 16), rtol=1e-4, atol=0)
    inputs = json.loads((project_copy / "new/mood/osrm.json").read_text())["inputs"]
    assert "moments/mood.safetensors" in [entry["path"] for entry in inputs]


def test_doubts_are_told_once_and_kept(project_copy: Path) -> None:
    osrm("collect", "--samples", 1, "--max-length", 5, "--statistic", "second-moment", "--out", "few", cwd=project_copy)
    args = ("--features", "few", "--objective", "osrm", "--rank", 2)
    run = osrm("init", "--each", *args, "--out", "new", "--json", cwd=project_copy)
    told = [line for line in run.stderr.splitlines() if line.startswith("warning: ")]
    assert told
    assert len(set(told)) == len(told)
    assert "too few tokens of other tasks" in told[0]
    kept = json.loads((project_copy / "new/mood/osrm.json").read_text())["concerns"]
    assert kept == json.loads(run.stdout)["concerns"]["mood"]
    assert f"warning: {kept[0]}" in told
    assert json.loads((project_copy / "starts/mood/osrm.json").read_text())["concerns"] == []


def test_dry_run_writes_nothing(project_copy: Path) -> None:
    before = listing(project_copy)
    run = osrm("init", "--each", "--out", "new", "--dry-run", cwd=project_copy)
    assert run.code == 0
    assert "new/mood: gevd, rank 8, from features/mood.safetensors, features/pair.safetensors" in run.stdout
    assert listing(project_copy) == before


def test_output_that_exists(project_copy: Path) -> None:
    run = osrm("init", "--each", cwd=project_copy)
    assert (run.code, run.error) == (1, "starts/mood exists already")
    assert osrm("init", "--each", "--overwrite", "--rank", 4, cwd=project_copy).code == 0
    assert factors(project_copy / "starts/mood")[f"{QUERY}.lora_A.weight"].shape == (4, 16)


@pytest.mark.parametrize("args", [(), ("--each", "--exclude", "mood"), ("--each", "--rank", "0")])
def test_usage_errors_end_with_2(project_copy: Path, args: tuple[str, ...]) -> None:
    assert osrm("init", "--out", "new", *args, cwd=project_copy).code == 2


BAD_OPTIONS = [
    (("--objective", "osmr"), "unknown objective 'osmr'"),
    (("--objective", "loss-aware"), "mood.safetensors has no statistic 'gradient', it holds: mean, second-moment"),
    (("--a-scale", "huge"), "unknown scale 'huge'"),
    (("--rank", 17), "rank 17 does not fit"),
    (("--features", "nowhere"), "nowhere is missing"),
    (("--statistic", "sketch:4"), "the features hold no 'sketch:4', they all hold: mean, samples, second-moment"),
    (("--objective", "gevd", "--statistic", "mean"), "'gevd' cannot be chosen from 'mean', but from: second-moment"),
    (("--objective", "kaiming", "--statistic", "mean"), "cannot be chosen from 'mean', but from: none, it reads no"),
    (("--exclude", "../mood"), "'../mood' cannot be the name of a task"),
    (("--alpha", "nan"), "--alpha is nan, expected 1e-06 to 1e+06"),
    (("--alpha", "inf"), "--alpha is inf, expected 1e-06 to 1e+06"),
    (("--alpha", 0), "--alpha is 0, expected 1e-06 to 1e+06"),
    (("--eps", "inf"), "--eps is inf, expected 0 or more"),
    (("--rank", 10**30), "does not fit"),
    (("--rank-budget", 10**30), "rank budget"),
    (("--objective", "kaiming", "--a-scale", "nan"), "unknown scale 'nan'"),
]


@pytest.mark.parametrize(("more", "error"), BAD_OPTIONS, ids=lambda value: " ".join(map(str, value)))
def test_bad_options_are_one_line(project_copy: Path, more: tuple[object, ...], error: str) -> None:
    before = listing(project_copy)
    run = osrm("init", "--exclude", "mood", "--out", "new", *more, cwd=project_copy)
    assert run.code == 1
    assert error in run.error
    assert run.stdout == ""
    assert listing(project_copy) == before


def test_starts_of_all_tasks_are_written_or_none(project_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = initialize.write_adapter

    def fail_for_score(folder: Path, *rest: object) -> None:
        if folder.name == "score":
            raise OsrmError("no more")
        write(folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(initialize, "write_adapter", fail_for_score)
    before = listing(project_copy)
    run = osrm("init", "--each", "--out", "new", cwd=project_copy)
    assert (run.code, run.error) == (1, "no more")
    assert listing(project_copy) == before


def test_list_names_every_objective_and_help_too(tmp_path: Path) -> None:
    run = osrm("init", "--list", cwd=tmp_path)
    rows = json.loads(osrm("init", "--list", "--json", cwd=tmp_path).stdout)["objectives"]
    text = osrm("init", "--help", cwd=tmp_path).stdout.replace("-\n", "-").replace(" ", "").replace("\n", "")
    assert (run.code, run.stderr) == (0, "")
    assert [row["name"] for row in rows] == [row.name for row in OBJECTIVES]
    for row, line in zip(OBJECTIVES, run.stdout.splitlines()[1:], strict=True):
        assert line.startswith(row.name)
        assert line.endswith(row.summary)
        assert row.name in text


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def foreign(path: Path) -> None:
    save_file({"a": torch.zeros(1)}, path)


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (lambda path: path.write_bytes(b""), "pair.safetensors is empty"),
    (truncated, "pair.safetensors is damaged"),
    (foreign, "pair.safetensors is not a features file"),
    (
        lambda path: change(path, "bert.encoder.layer.1.attention.self.query.mean", float("nan")),
        "pair.safetensors: NaN or infinity in bert.encoder.layer.1.attention.self.query.mean",
    ),
    (
        lambda path: change(path, base={"name": "other", "revision": None, "sha256": "f" * 64}),
        "pair.safetensors comes from base model other",
    ),
    (lambda path: change(path, settings={"pooling": "padded"}), "pair.safetensors differs from the other features"),
    (
        lambda path: change(path, statistics=["samples"]),
        "pair.safetensors holds samples, the other features files mean, samples, second-moment",
    ),
]


@pytest.mark.parametrize(
    ("breaking", "error"), BROKEN, ids=[error.partition(".safetensors ")[2] for _, error in BROKEN]
)
@pytest.mark.parametrize("objective", ["osrm", "official"])
def test_broken_features_are_named(
    project_copy: Path, breaking: Callable[[Path], None], error: str, objective: str
) -> None:
    breaking(project_copy / "features/pair.safetensors")
    run = osrm("init", "--exclude", "mood", "--objective", objective, "--out", "new", cwd=project_copy)
    if "holds samples" in error and objective == "osrm":  # which samples serve as well
        assert run.code == 0
        return
    assert run.code == 1
    assert error in run.error
    assert not (project_copy / "new").exists()


def test_only_the_own_features(project_copy: Path) -> None:
    for other in ("pair", "score"):
        (project_copy / f"features/{other}.safetensors").unlink()
    for which in (("--exclude", "mood"), ("--each",)):
        run = osrm("init", *which, "--out", "new", cwd=project_copy)
        assert run.error == "features holds no features of a task other than 'mood'"
    assert osrm("init", "--each", "--objective", "eva", "--out", "new", cwd=project_copy).code == 0


def test_statistic_is_the_first_choice_or_the_wanted_one_and_recorded(project_copy: Path) -> None:
    for out, more in (("first", ()), ("mean", ("--statistic", "mean")), ("moment", ("--statistic", "second-moment"))):
        args = ("--objective", "osrm", "--rank", 2, "--out", out, *more)
        assert osrm("init", "--exclude", "mood", *args, cwd=project_copy).code == 0
    read = {out: json.loads((project_copy / out / "mood/osrm.json").read_text()) for out in ("first", "mean", "moment")}
    assert {out: facts["settings"]["statistic"] for out, facts in read.items()} == {
        "first": "mean",
        "mean": "mean",
        "moment": "second-moment",
    }
    assert (project_copy / "first/mood" / WEIGHTS).read_bytes() == (project_copy / "mean/mood" / WEIGHTS).read_bytes()
    name = QUERY.removeprefix("base_model.model.") + ".second-moment"
    C = (
        sum(
            m / m.trace()
            for m in (load_file(project_copy / f"features/{task}.safetensors")[name] for task in ("pair", "score"))
        ).double()
        / 2
    )
    A = factors(project_copy / "moment/mood")[f"{QUERY}.lora_A.weight"].double()
    assert (A @ C @ A.T).trace() == pytest.approx(float(torch.linalg.eigvalsh(C)[:2].sum()), rel=1e-4)


def test_settings_tell_the_sample_size(project_copy: Path) -> None:
    """The number of examples behind the features that were read; none for a start that reads none."""
    for objective, examples in (("osrm", 20), ("kaiming", None)):
        args = ("init", "--exclude", "mood", "--rank", 2, "--objective", objective, "--out", objective)
        assert osrm(*args, cwd=project_copy).code == 0
        assert json.loads((project_copy / objective / "mood/osrm.json").read_text())["settings"]["examples"] == examples
