"""``merge_adapters`` from Python: the same folder as the command, and every input that it has no use for refused."""

import dataclasses

import pytest

from osrm_cli.errors import OsrmError
from osrm_cli.merging.layer_data import NoLayerData
from osrm_cli.merging.merge import merge_adapters
from osrm_cli.merging.merged_layer import merge_layers
from osrm_cli.merging.plan import MergePlan
from osrm_cli.merging.recipes.recipe import MergeRecipe, RecipeEntry
from tests import factories
from tests.run_cli import osrm

NAMES = ("cola", "mnli")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("merge")
    for seed, name in enumerate(NAMES):
        factories.save(root / "adapters" / name, "bert", seed)
    factories.model("bert").bert.save_pretrained(str(root / "base"))
    return root


@pytest.fixture
def project_copy(root, tmp_path, monkeypatch):
    (tmp_path / "adapters").symlink_to(root / "adapters")
    (tmp_path / "base").symlink_to(root / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


GIVEN = [f"adapters/{name}" for name in NAMES]


def read(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_folder_as_the_command(project_copy):
    result = merge_adapters(
        GIVEN, "ties", options={"lambda": 0.5, "density": 0.3}, weights={"cola": 2.0}, form="model", model="base"
    )
    words = ["ties", "--lambda", 0.5, "--density", 0.3, "--weight", "cola=2", "--as", "model", "--model", "base"]
    assert osrm("merge", *GIVEN, "-m", *words, "--out", "other", cwd=project_copy).code == 0
    assert read(project_copy / "merged") == read(project_copy / "other")
    assert result.summary["form"] == "model"
    assert result.line.startswith("cola, mnli by ties (aggregate mean, density 0.3, lambda 0.5), 6 layers")
    assert not result.warnings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"features": "features"}, "method task-arith does not use --features"),
        ({"data": "mini"}, "method task-arith does not use --data"),
        ({"model": "base"}, "method task-arith does not use --model"),
        ({"options": {"density": 0.3}}, "method task-arith does not use --density"),
    ],
    ids=["features", "data", "model", "option"],
)
def test_what_is_not_used_is_refused_unless_it_may_be(project_copy, given, message):
    with pytest.raises(OsrmError, match=message):
        merge_adapters(GIVEN, **given)
    merge_adapters(GIVEN, **given, must_use=())
    merge_adapters(GIVEN, out="other")
    assert read(project_copy / "merged") == read(project_copy / "other")


def test_a_form_that_there_is_not_is_refused(project_copy):
    with pytest.raises(OsrmError, match="output form 'gguf', expected adapter or model"):
        merge_adapters(GIVEN, form="gguf")


def test_a_further_step_sees_the_whole_folder_before_it_is_in_place(project_copy):
    class Step:
        warnings = ()

        def apply(self, stage, base_dir, device, progress):
            assert (stage / "merge.yaml").is_file()
            assert not (project_copy / "merged").exists()
            (stage / "extra").write_text(f"{base_dir} {device}")
            return {"cola": {"before": 2.0, "error": 1.0, "used": False}}

    def prepare(adapters, data):
        assert [adapter.name for adapter in adapters] == list(NAMES)
        assert data == "mini"
        return Step()

    result = merge_adapters(GIVEN, calibrate=prepare, data="mini", model="base", device="cpu")
    assert (project_copy / "merged" / "extra").read_text() == "base cpu"
    assert result.notes == ["cola: difference 2 before calibration, 1 after: uncalibrated is kept"]

    def fail(adapters, data):
        class Failing(Step):
            def apply(self, *_):
                raise OsrmError("no")

        return Failing()

    with pytest.raises(OsrmError):
        merge_adapters(GIVEN, calibrate=fail, data="mini", model="base", out="other")
    assert sorted(path.name for path in project_copy.iterdir()) == ["adapters", "base", "merged"]


def test_layers_that_depend_on_each_other_are_merged_in_their_own_order(project_copy):
    plan = MergePlan.of(MergeRecipe("task-arith", tuple(map(RecipeEntry, GIVEN))))
    seen = []

    class Ordered(NoLayerData):
        sequence = tuple(reversed(plan.layers))

        def for_layer(self, layer, merged):
            seen.append((layer, tuple(merged)))
            return {}

    merged = [layer.name for layer in merge_layers(plan, Ordered(), plan.layers, jobs=3)]
    assert merged == list(plan.layers)
    assert seen == [(layer, Ordered.sequence[:index]) for index, layer in enumerate(Ordered.sequence)]


def test_a_dry_run_reads_the_base_models_headers(project_copy):
    odd = dataclasses.replace(factories.model("bert").bert.config, hidden_size=8)
    type(factories.model("bert").bert)(odd).save_pretrained("odd")
    with pytest.raises(OsrmError, match=r"is \(8, 8\), expected \(16, 16\)"):
        merge_adapters(GIVEN, form="model", model="odd", dry_run=True)
    result = merge_adapters(GIVEN, form="model", model="base", dry_run=True)
    assert result.summary["layers"] == 6
    assert not (project_copy / "merged").exists()
