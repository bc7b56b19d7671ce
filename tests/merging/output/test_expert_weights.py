"""Models with stacked experts: the files of either layout become what PEFT's merge makes of the model."""

import contextlib
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig

from osrm_cli.errors import OsrmError
from osrm_cli.merging.merge import merge_adapters
from osrm_cli.merging.output.unfinished_model import UnfinishedMerge
from osrm_cli.models.checkpoint import Checkpoint
from osrm_cli.verification.verify import verify_artifacts
from tests.adapters import test_experts
from tests.adapters.test_experts import BOTH, SMALL, load, logits, model, save

# Its stacks are (E, d_in, d_out), and that of gate_up_proj is square.
TURNED = GptOssConfig(intermediate_size=8, num_local_experts=3, head_dim=8, layer_types=["full_attention"] * 2, **SMALL)
LAYOUTS = [("mixtral", True), ("mixtral", False), ("qwen", True), ("qwen", False), ("gpt-oss", False)]


@pytest.fixture(autouse=True)
def third_family(monkeypatch):
    monkeypatch.setitem(test_experts.CONFIGS, "gpt-oss", lambda: TURNED)


def save_base(folder, family, is_original, shard="5GB"):
    model(family).save_pretrained(folder, save_original_format=is_original, max_shard_size=shard)
    names = Checkpoint.open(folder).tensors
    assert any("experts.0." in name for name in names) == (is_original and family != "gpt-oss")
    return folder


def merged_logits(folder):
    return logits(AutoModelForCausalLM.from_pretrained(folder).eval())


def peft_logits(family, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return logits(load(folder, family).merge_and_unload())


@pytest.mark.parametrize(("family", "is_original"), LAYOUTS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"parameters": BOTH[1:], "target_modules": []},
        {"parameters": BOTH[:1], "use_rslora": True},
        {"parameters": ["q_proj.weight"], "target_modules": []},
    ],
    ids=["both", "one", "rslora", "no stack"],
)
@pytest.mark.filterwarnings("ignore")
def test_one_adapter_as_peft_merges_it(tmp_path, family, is_original, settings):
    base = save_base(tmp_path / "base", family, is_original)
    save(tmp_path / "a", family, **settings)
    expected = peft_logits(family, tmp_path / "a")
    assert not torch.allclose(expected, logits(model(family)), atol=1e-3)
    options = {"lambda": 1.0}
    merge_adapters([tmp_path / "a"], options=options, form="model", model=str(base), out=tmp_path / "m")
    torch.testing.assert_close(merged_logits(tmp_path / "m"), expected, rtol=1e-5, atol=1e-5)
    assert load_file(tmp_path / "m/model.safetensors").keys() == load_file(base / "model.safetensors").keys()


@pytest.mark.parametrize(("family", "is_original"), LAYOUTS)
@pytest.mark.parametrize("method", ["task-arith", "ties"])
def test_several_adapters_as_the_merged_adapter(tmp_path, family, is_original, method):
    base = save_base(tmp_path / "base", family, is_original)
    save(tmp_path / "a", family, seed=1)
    save(tmp_path / "b", family, seed=2, parameters=BOTH[:1])
    given = [tmp_path / "a", tmp_path / "b"]
    merge_adapters(given, method, options={"rank": 16}, out=tmp_path / "merged")  # which cuts nothing
    merge_adapters(given, method, form="model", model=str(base), out=tmp_path / "m")
    expected = logits(load(tmp_path / "merged", family))
    torch.testing.assert_close(merged_logits(tmp_path / "m"), expected, rtol=1e-4, atol=1e-4)
    assert not verify_artifacts([tmp_path / "m"]).failures


@pytest.mark.parametrize(("family", "is_original"), LAYOUTS)
def test_a_merge_that_stopped_goes_on(tmp_path, family, is_original, monkeypatch):
    base = save_base(tmp_path / "base", family, is_original, "6KB")
    assert len(list(base.glob("*.safetensors"))) > 3
    save(tmp_path / "a", family)
    settings = {"form": "model", "model": str(base), "jobs": 1}
    merge_adapters([tmp_path / "a"], out=tmp_path / "whole", **settings)
    files, note = 0, UnfinishedMerge.add_kept_energy

    def interrupt(self, kept):
        nonlocal files
        files += 1
        note(self, kept)
        if files % 2 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(UnfinishedMerge, "add_kept_energy", interrupt)
    while not (tmp_path / "m").exists():
        with contextlib.suppress(KeyboardInterrupt):
            merge_adapters([tmp_path / "a"], out=tmp_path / "m", resume=True, **settings)
    assert files > 3
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert (tmp_path / "m" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("is_original", [True, False])
@pytest.mark.parametrize("count", [2, 4])
def test_another_number_of_experts_is_refused(tmp_path, is_original, count):
    base = save_base(tmp_path / "base", "mixtral", is_original)
    save(tmp_path / "a")
    path = base / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if "experts" in name]:
        if not is_original:
            tensors[name] = torch.cat([tensors[name]] * 2)[:count]
        elif count == 4:
            tensors[name.replace("experts.0", "experts.3")] = tensors[name].clone()
        elif "experts.2" in name:
            del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(OsrmError, match=r"base: .*expert") as found:
        merge_adapters([tmp_path / "a"], form="model", model=str(base), out=tmp_path / "m")
    assert "give the right base with --model" in str(found.value.hint)
    assert not (tmp_path / "m").exists()


def test_other_widths_are_refused(tmp_path):
    base = save_base(tmp_path / "base", "mixtral", True)
    save(tmp_path / "a")
    path = base / "model.safetensors"
    tensors = load_file(path)
    cut = {name: tensor[:9].clone() if ".w1." in name else tensor for name, tensor in tensors.items()}
    save_file(cut, path, metadata={"format": "pt"})
    with pytest.raises(OsrmError, match=r"w1\.weight \(9, 16\), .*w3\.weight \(24, 16\) do not make 3 experts of \(48"):
        merge_adapters([tmp_path / "a"], form="model", model=str(base), out=tmp_path / "m")


def test_files_that_transformers_reads_in_another_way_are_refused(tmp_path):
    base = save_base(tmp_path / "base", "mixtral", True)
    save(tmp_path / "a")
    values = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**values, "architectures": ["OwnMixtral"]}))
    with pytest.raises(OsrmError, match=r"none of its tensors is known to hold the expert .*down_proj\.0"):
        merge_adapters([tmp_path / "a"], form="model", model=str(base), out=tmp_path / "m")
