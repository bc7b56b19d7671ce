from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from osrm_cli.errors import OsrmError
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.features.features_file import FeaturesFile
from osrm_cli.storage import safetensors_writer

LAYERS = {
    "l.0.query": {"source": "l.0.query", "d_in": 4, "d_out": 6},
    "l.0.value": {"source": "l.0.query", "d_in": 4, "d_out": 6},
    "l.1.dense": {"source": "l.1.dense", "d_in": 5, "d_out": 4},
}
BASE = {"name": "tiny", "revision": None, "sha256": "a" * 64}


def facts(task: str, **changes: Any) -> dict[str, Any]:
    made = {
        "command": "collect",
        "task": {"name": task, "columns": ["text"], "labels": ["no", "yes"], "metrics": ["accuracy"]},
        "base": BASE,
        "settings": {"pooling": "masked"},
        "layers": LAYERS,
        "statistics": ["mean"],
        "tokens": 9,
        "examples": 3,
        "target_modules": ["query", "value", "dense"],
        "fan_in_fan_out": False,
    }
    return {**made, **changes}


def held(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"l.0.query.mean": torch.full((4,), value), "l.1.dense.mean": torch.full((5,), value)}


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def write(task: str, contents: Mapping[str, torch.Tensor] | None = None, name: str = "", **changes: Any) -> Path:
        path = tmp_path / f"{name or task}.safetensors"
        safetensors_writer.save_tensors(path, held() if contents is None else contents, facts(task, **changes))
        return path

    return write


def test_layers_that_share_an_input_read_one_entry(make: Make) -> None:
    found = FeaturesFile.open(make("sst2"))
    assert (found.task, found.tokens, found.examples) == ("sst2", 9, 3)
    assert list(found.layers) == list(LAYERS)
    reader = found.reader()
    for layer in found.layers:
        tensor = reader.read(layer, "mean")
        assert tensor.dtype == torch.float64
        assert torch.equal(tensor, torch.ones(found.layers[layer].d_in, dtype=torch.float64))


def test_folder_is_read_in_the_order_of_names(make: Make, tmp_path: Path) -> None:
    for task in ("b", "c", "a"):
        make(task)
    (tmp_path / ".a.partial.safetensors").write_bytes(b"")
    assert FeatureSet.open(tmp_path).tasks == ["a", "b", "c"]


@pytest.mark.parametrize("empty", [True, False], ids=["empty", "missing"])
def test_folder_without_files(tmp_path: Path, empty: bool) -> None:
    folder = tmp_path / "features"
    if empty:
        folder.mkdir()
    with pytest.raises(OsrmError, match="holds no features files" if empty else "features is missing") as caught:
        FeatureSet.open(folder)
    assert "osrm collect" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("contents", "what"),
    [(b"", "is empty"), (b"\0" * 7, "is damaged"), (b"garbage" * 99, "is damaged"), (None, "is damaged")],
)
def test_damaged_file_is_named(make: Make, tmp_path: Path, contents: bytes | None, what: str) -> None:
    make("good")
    bad = make("bad")
    bad.write_bytes(bad.read_bytes()[:-3] if contents is None else contents)
    with pytest.raises(OsrmError, match=rf"bad\.safetensors {what}"):
        FeatureSet.open(tmp_path)


@pytest.mark.parametrize(
    "missing", ["base", "task", "layers", "statistics", "tokens", "target_modules", "fan_in_fan_out"]
)
def test_incomplete_header_is_named(make: Make, missing: str) -> None:
    path = make("sst2")
    safetensors_writer.save_tensors(
        path, held(), {key: value for key, value in facts("sst2").items() if key != missing}
    )
    with pytest.raises(OsrmError, match=r"sst2\.safetensors: its header cannot be used: "):
        FeaturesFile.open(path)


WRONG: list[tuple[str, Any]] = [
    ("task", None),
    ("task", 3),
    ("task", {"name": ["sst2"]}),
    ("task", {"name": "../x", "columns": ["text"], "labels": None, "metrics": []}),
    ("task", {"name": "a\0b", "columns": ["text"], "labels": None, "metrics": []}),
    ("base", "minilm"),
    ("base", {**BASE, "sha256": 7}),
    ("base", {**BASE, "more": 1}),
    ("layers", []),
    ("layers", {}),
    ("layers", {"l": None}),
    ("layers", {"l": {"source": "l", "d_in": "4", "d_out": 6}}),
    ("layers", {"l": {"source": "l", "d_in": 10**400, "d_out": 6}}),
    ("layers", {"l": {"source": "l", "d_in": -4, "d_out": 6}}),
    ("layers", {"l": {"source": "elsewhere", "d_in": 4, "d_out": 6}}),
    ("statistics", "mean"),
    ("statistics", []),
    ("statistics", [None]),
    ("statistics", ["median"]),
    ("statistics", ["\ud800"]),
    ("statistics", ["sketch:99999999999"]),
    ("tokens", "9"),
    ("tokens", -1),
    ("tokens", 10**400),
    ("tokens", 9.5),
    ("examples", None),
    ("settings", []),
    ("settings", {"pooling": 3}),
    ("bounds", [1]),
    ("bounds", {"l.0.query.mean": {"error": "big", "energy": 1.0}}),
    ("target_modules", "query"),
    ("target_modules", [1]),
    ("fan_in_fan_out", "no"),
    ("private", 4),
    ("data", "mini"),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=lambda value: str(value)[:40].replace("\0", "NUL"))
def test_a_value_of_the_wrong_type_is_named(tmp_path: Path, key: str, value: Any) -> None:
    safetensors_writer.save_tensors(tmp_path / "sst2.safetensors", held(), {**facts("sst2"), key: value})
    with pytest.raises(OsrmError, match=rf"sst2\.safetensors: its header cannot be used: .*{key[:5]}"):
        FeatureSet.open(tmp_path)


@pytest.mark.parametrize(
    "text", ["[1", "3", "[" * 100_000, '{"tokens": ' + "9" * 5000 + "}"], ids=lambda text: text[:9]
)
def test_a_header_that_is_no_object(tmp_path: Path, text: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "sst2.safetensors", metadata={"osrm": text})
    with pytest.raises(OsrmError, match=r"sst2\.safetensors: its metadata cannot be read"):
        FeatureSet.open(tmp_path)


@pytest.mark.parametrize(
    ("statistic", "shape", "expected"),
    [
        ("second-moment", (3, 4), r"\(4, 4\)"),
        ("second-moment", (4,), r"\(4, 4\)"),
        ("sketch:8", (7, 4), r"\(8, 4\)"),
        ("samples", (4,), r"\(any, 4\)"),
        ("mean", (1, 4), r"\(4\)"),
        ("gradient", (4, 6), r"\(6, 4\)"),
    ],
)
def test_a_tensor_of_another_shape_is_named(make: Make, statistic: str, shape: tuple[int, ...], expected: str) -> None:
    contents = {f"l.0.query.{statistic}": torch.ones(shape)}
    reader = FeaturesFile.open(make("sst2", contents, statistics=[statistic])).reader()
    with pytest.raises(OsrmError, match=rf"l\.0\.query\.{statistic} has shape .*, expected {expected}"):
        reader.read("l.0.query", statistic)


def test_safetensors_of_another_program(tmp_path: Path) -> None:
    safetensors_writer.save_tensors(tmp_path / "model.safetensors", held(), {})
    with pytest.raises(OsrmError, match="is not a features file"):
        FeaturesFile.open(tmp_path / "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_nan_inside_is_found_when_it_is_read(make: Make, value: float) -> None:
    contents = {name: tensor.double() for name, tensor in held().items()}
    contents["l.1.dense.mean"][2] = value
    reader = FeaturesFile.open(make("sst2", contents)).reader()
    reader.read("l.0.value", "mean")
    with pytest.raises(OsrmError, match=r"sst2\.safetensors: NaN or infinity in l\.1\.dense\.mean"):
        reader.read("l.1.dense", "mean")


def test_whole_numbers_are_no_statistic(make: Make) -> None:
    contents = held() | {"l.1.dense.mean": held()["l.1.dense.mean"].float().view(torch.int32)}
    reader = FeaturesFile.open(make("sst2", contents)).reader()
    with pytest.raises(OsrmError, match=r"l\.1\.dense\.mean holds no floating-point numbers"):
        reader.read("l.1.dense", "mean")


def test_missing_and_misshapen_entries_are_named(make: Make) -> None:
    contents = {"l.1.dense.mean": torch.ones(4)}
    reader = FeaturesFile.open(make("sst2", contents)).reader()
    with pytest.raises(OsrmError, match=r"sst2\.safetensors lacks l\.0\.query\.mean"):
        reader.read("l.0.value", "mean")
    with pytest.raises(OsrmError, match=r"l\.1\.dense\.mean has shape \(4,\), expected \(5\)"):
        reader.read("l.1.dense", "mean")
    with pytest.raises(OsrmError, match="has no statistic 'samples', it holds: mean") as caught:
        reader.read("l.1.dense", "samples")
    assert caught.value.hint == "osrm collect --overwrite --task sst2 --statistic mean --statistic samples"


WIDER = {**LAYERS, "l.1.dense": {"source": "l.1.dense", "d_in": 7, "d_out": 4}}
FEWER = {name: layer for name, layer in LAYERS.items() if name != "l.0.value"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": {**BASE, "name": "large", "sha256": "b" * 64}}, "comes from base model large"),
        ({"base": {**BASE, "revision": "f00d"}}, "in its revision: f00d, expected beef"),
        ({"layers": WIDER}, r"in its layers: l\.1\.dense is \(7, 4\), expected \(5, 4\)"),
        ({"layers": FEWER}, r"in its layers: l\.0\.value is absent"),
        ({"settings": {"pooling": "padded"}}, "in its pooling: padded, expected masked"),
    ],
    ids=["base", "revision", "width", "layer", "pooling"],
)
@pytest.mark.parametrize("place", ["a-odd", "z-odd"])
def test_odd_file_is_named(make: Make, tmp_path: Path, changes: dict[str, Any], message: str, place: str) -> None:
    for task in ("m", "n"):
        make(task, base={**BASE, "revision": "beef"} if "revision" in message else BASE)
    make(place, **changes)
    with pytest.raises(OsrmError, match=rf"^.*{place}\.safetensors .*{message}"):
        FeatureSet.open(tmp_path)


def test_revision_may_be_unknown_on_one_side(make: Make, tmp_path: Path) -> None:
    make("hub", base={**BASE, "revision": "beef"})
    make("local")
    assert FeatureSet.open(tmp_path).tasks == ["hub", "local"]


def test_two_files_of_one_task_are_named(make: Make, tmp_path: Path) -> None:
    make("sst2")
    make("sst2", name="sst2-copy")
    with pytest.raises(OsrmError, match=r"sst2-copy\.safetensors and .*sst2\.safetensors both hold task 'sst2'"):
        FeatureSet.open(tmp_path)
