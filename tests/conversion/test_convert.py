"""`osrm convert`: round trips bit for bit, components, merges of every format, and the command line."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.conversion.convert import convert_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.merging.merge import merge_adapters
from tests.adapters.formats.factories import LAYERS, QUERY, deltas, write_peft
from tests.factories import load, logits, save
from tests.run_cli import listing, osrm

TEXT = "text_model.encoder.layers.3.mlp.fc1"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@st.composite
def adapters(draw: st.DrawFn) -> dict[str, object]:
    """Arguments of ``write_peft``: any ranks, alphas and types, with and without rsLoRA."""
    layers = {name: LAYERS[name] for name in draw(st.lists(st.sampled_from(list(LAYERS)), min_size=1, unique=True))}
    return {
        "layers": layers,
        "ranks": {name: draw(st.integers(1, 5)) for name in layers},
        "seed": draw(st.integers(0, 2**32)),
        "dtype": draw(st.sampled_from(DTYPES)),
        "lora_alpha": draw(st.integers(1, 64) | st.floats(0.01, 100)),
        "use_rslora": draw(st.booleans()),
        "alpha_pattern": {f"^{QUERY}": draw(st.floats(0.01, 100))} if draw(st.booleans()) else {},
    }


@settings(deadline=None, max_examples=40, derandomize=True)
@given(adapters())
def test_there_and_back_through_kohya_is_bit_for_bit(tmp_path_factory, arguments):
    folder = tmp_path_factory.mktemp("trip")
    ours = write_peft(folder / "a", **arguments)
    convert_adapter(folder / "a", folder / "a.safetensors", "kohya")
    convert_adapter(folder / "a.safetensors", folder / "b")
    back = open_adapter(folder / "b")
    assert list(back.layers) == list(ours.layers)
    old, new = (load_file(folder / name / "adapter_model.safetensors") for name in "ab")
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        assert new[name].dtype == tensor.dtype
        assert torch.equal(new[name], tensor), name
    for layer, shape in ours.layers.items():
        tolerance = 4e-16 if arguments["use_rslora"] else 0
        assert back.layers[layer].scaling == pytest.approx(shape.scaling, rel=tolerance, abs=0)
        assert back.layers[layer].kernel == shape.kernel


@settings(deadline=None, max_examples=20, derandomize=True)
@given(adapters())
def test_there_and_back_through_diffusers_is_the_same_update(tmp_path_factory, arguments):
    folder = tmp_path_factory.mktemp("trip")
    ours = write_peft(folder / "a", **arguments)
    convert_adapter(folder / "a", folder / "a.safetensors", "diffusers", dtype="float32")
    convert_adapter(folder / "a.safetensors", folder / "b")
    for layer, delta in deltas(ours).items():
        assert torch.dist(open_adapter(folder / "b").delta(layer, torch.float64).dense(), delta) <= 1e-6 * delta.norm()


def test_peft_to_peft_keeps_heads_and_what_this_program_recorded(tmp_path):
    save(tmp_path / "a", "llama", task_type="SEQ_CLS")
    (tmp_path / "a" / "osrm.json").write_text(json.dumps({"task": {"name": "mood"}, "data": {"source": "mini"}}))
    convert_adapter(tmp_path / "a", tmp_path / "b")
    old, new = open_adapter(tmp_path / "a"), open_adapter(tmp_path / "b")
    assert new.name == "mood"
    assert new.data_source == "mini"
    assert new.state_dict().keys() == old.state_dict().keys()
    for name, tensor in old.state_dict().items():
        assert torch.equal(new.state_dict()[name], tensor)


# What Unsloth writes for a model with vision: a regular expression, notes of its own, and the name of a quantized base.
PARTS, LINEAR = "(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)", "(?:q_proj|k_proj)"
LANGUAGE = rf"(?:.*?(?:language|text).*?{PARTS}.*?{LINEAR}.*?)"
LAYERS_OF = rf"(?:\bmodel\.layers\.[\d]{{1,}}\.{PARTS}\.(?:{LINEAR}))"
UNSLOTH = {
    "auto_mapping": {"base_model_class": "LlamaForSequenceClassification", "unsloth_fixed": True},
    "base_model_name_or_path": "unsloth/tiny-llama-unsloth-bnb-4bit",
    "target_modules": f"{LANGUAGE}|{LAYERS_OF}",
    "peft_version": "0.18.1",
    "alora_invocation_tokens": None,
    "target_parameters": None,
    "qalora_group_size": 16,
}


def test_unsloth_s_folders_are_peft_s(tmp_path):
    ours = save(tmp_path / "a", "llama", target_modules=["q_proj", "k_proj"], lora_alpha=12)
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | UNSLOTH))
    convert_adapter(tmp_path / "a", tmp_path / "b")
    torch.testing.assert_close(logits(load(tmp_path / "b", "llama")), logits(ours), rtol=1e-6, atol=1e-6)
    assert (
        json.loads((tmp_path / "b" / "adapter_config.json").read_text())["target_modules"] == UNSLOTH["target_modules"]
    )


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
@pytest.mark.parametrize("method", ["ties", "tsv"])
def test_a_format_goes_in_through_a_merge_and_out(tmp_path, format, method):
    for name, seed in {"a": 1, "b": 2}.items():
        write_peft(tmp_path / name, seed=seed, ranks={QUERY: 3})
        convert_adapter(tmp_path / name, tmp_path / f"{name}.safetensors", format)
    folders, files = ([tmp_path / f"{name}{suffix}" for name in "ab"] for suffix in ("", ".safetensors"))
    merge_adapters(folders, method, out=tmp_path / "from-folders")
    merge_adapters(files, method, out=tmp_path / "from-files")
    ours, theirs = (open_adapter(tmp_path / name) for name in ("from-folders", "from-files"))
    torch.testing.assert_close(deltas(theirs), deltas(ours), rtol=1e-5, atol=1e-6)
    convert_adapter(tmp_path / "from-files", tmp_path / "merged.safetensors", format)
    torch.testing.assert_close(
        deltas(open_adapter(tmp_path / "merged.safetensors")), deltas(ours), rtol=1e-5, atol=1e-6
    )


def test_a_merge_of_one_component_with_several(tmp_path):
    write_peft(tmp_path / "unet", {QUERY: (6, 4)}, seed=1)
    both = write_peft(tmp_path / "both", {f"unet.{QUERY}": (6, 4), f"text_encoder.{TEXT}": (6, 4)}, seed=2)
    merge_adapters([tmp_path / "unet", tmp_path / "both"], "task-arith", out=tmp_path / "merged")
    assert set(open_adapter(tmp_path / "merged").layers) == set(both.layers)


def test_one_component_of_several(tmp_path):
    layers = {f"unet.{QUERY}": (6, 4), f"text_encoder.{TEXT}": (6, 4), f"text_encoder_2.{TEXT}": (6, 4)}
    ours = write_peft(tmp_path / "all", layers, ranks={f"unet.{QUERY}": 3}, lora_alpha=5)
    for component, layer in {"unet": QUERY, "text_encoder": TEXT, "text_encoder_2": f"text_encoder_2.{TEXT}"}.items():
        convert_adapter(tmp_path / "all", tmp_path / component, component=component)
        one = open_adapter(tmp_path / component)
        assert list(one.layers) == [layer]
        full = layer if component in layer else f"{component}.{layer}"
        torch.testing.assert_close(one.delta(layer).dense(), ours.delta(full).dense(), rtol=0, atol=0)
    with pytest.raises(OsrmError, match="does not adapt transformer"):
        convert_adapter(tmp_path / "all", tmp_path / "none", component="transformer")
    with pytest.raises(OsrmError, match="unknown component 'vae'"):
        convert_adapter(tmp_path / "all", tmp_path / "none", component="vae")


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_layers_that_do_not_tell_their_component_need_it(tmp_path, format):
    write_peft(tmp_path / "a", {"encoder.layers.0.mlp.fc1": (6, 4)})
    out = tmp_path / "a.safetensors"
    with pytest.raises(OsrmError, match="does not tell which part of a pipeline"):
        convert_adapter(tmp_path / "a", out, format)
    convert_adapter(tmp_path / "a", out, format, component="text_encoder_2")
    assert list(open_adapter(out).layers) == ["text_encoder_2.encoder.layers.0.mlp.fc1"]


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
@pytest.mark.parametrize("targets", [["embed_tokens"], ["q_proj"]])
def test_embeddings_and_heads_have_no_place_in_a_file(tmp_path, format, targets):
    save(tmp_path / "a", "llama", target_modules=targets, task_type="SEQ_CLS" if "q_proj" in targets else None)
    with pytest.raises(OsrmError, match=f"which the format {format} cannot"):
        convert_adapter(tmp_path / "a", tmp_path / "a.safetensors", format, component="text_encoder")
    assert listing(tmp_path) == {f"a/{name}" for name in listing(tmp_path / "a")}


def test_an_authors_layout_goes_to_kohya_alone(tmp_path):
    ours = write_peft(
        tmp_path / "a", {"double_blocks.3.img_attn.qkv": (6, 4), "single_blocks.0.modulation.lin": (6, 4)}
    )
    convert_adapter(tmp_path / "a", tmp_path / "a.safetensors", "kohya")
    assert "lora_unet_double_blocks_3_img_attn_qkv.alpha" in load_file(tmp_path / "a.safetensors")
    assert list(open_adapter(tmp_path / "a.safetensors").layers) == list(ours.layers)
    with pytest.raises(OsrmError, match="its authors' layout"):
        convert_adapter(tmp_path / "a", tmp_path / "b.safetensors", "diffusers")


def test_the_command(tmp_path):
    write_peft(tmp_path / "style")
    run = osrm("convert", "style", "style.safetensors", "--format", "kohya", "--json", cwd=tmp_path)
    assert run.code == 0, run.stderr
    assert json.loads(run.stdout) == {
        "path": "style.safetensors",
        "source_format": "peft",
        "source_kind": "LoRA",
        "kept_energy": 1.0,
        "format": "kohya",
        "layers": 3,
        "ranks": [2, 2],
        "dtype": "float32",
        "left_out": [],
    }
    first = (tmp_path / "style.safetensors").read_bytes()
    again = osrm("convert", "style", "style.safetensors", "-f", "kohya", cwd=tmp_path)
    assert (again.code, again.error) == (1, "style.safetensors exists already")
    over = osrm("convert", "style", "style.safetensors", "-f", "kohya", "--overwrite", cwd=tmp_path)
    assert over.stdout == "style.safetensors: 3 layers of rank 2, float32: peft to kohya\n"
    assert (tmp_path / "style.safetensors").read_bytes() == first
    dry = osrm("convert", "style.safetensors", "back", "--dry-run", cwd=tmp_path)
    assert dry.stdout == "would write back: 3 layers of rank 2, float32: kohya to peft\n"
    assert not (tmp_path / "back").exists()
    assert osrm("convert", "style.safetensors", "back", cwd=tmp_path).code == 0
    assert osrm("verify", "back", "style.safetensors", cwd=tmp_path).code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["style", "out", "-f", "kohya"], "out cannot be the output: the format kohya is a file"),
        (["style", "out.safetensors"], "out.safetensors cannot be the output: the format peft is a folder"),
        (["style", "out", "-f", "gguf"], "unknown format 'gguf', expected one of: diffusers, kohya, mlx, peft"),
        (["nothing", "out"], "nothing is missing"),
        (["broken.safetensors", "out"], "damaged or not a safetensors file"),
    ],
)
def test_errors_of_the_command(tmp_path, words, message):
    write_peft(tmp_path / "style")
    (tmp_path / "broken.safetensors").write_text("no tensors")
    before = listing(tmp_path)
    run = osrm("convert", *words, cwd=tmp_path)
    assert run.code == 1
    assert message in run.error
    assert listing(tmp_path) == before


def test_nothing_stays_where_writing_fails(tmp_path: Path):
    write_peft(tmp_path / "style")
    tensors = load_file(tmp_path / "style" / "adapter_model.safetensors")
    tensors[f"base_model.model.{QUERY}.lora_B.weight"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "style" / "adapter_model.safetensors")
    before = listing(tmp_path)
    for format, out in {"kohya": "a.safetensors", "diffusers": "b.safetensors", "peft": "c"}.items():
        with pytest.raises(OsrmError, match="NaN or infinity"):
            convert_adapter(tmp_path / "style", tmp_path / out, format)
    assert listing(tmp_path) == before


def test_what_files_were_merged_into_can_be_verified(tmp_path):
    for name, seed in {"a": 1, "b": 2}.items():
        write_peft(tmp_path / name, seed=seed)
        convert_adapter(tmp_path / name, tmp_path / f"{name}.safetensors", "diffusers")
    (tmp_path / "saved").mkdir()
    (tmp_path / "b.safetensors").rename(tmp_path / "saved" / "pytorch_lora_weights.safetensors")
    assert osrm("merge", "a.safetensors", "saved", cwd=tmp_path).code == 0
    run = osrm("verify", "merged", "--json", cwd=tmp_path)
    assert run.code == 0, run.stdout
    inputs = {check["name"]: check["result"] for check in json.loads(run.stdout)["checks"] if check["kind"] == "input"}
    assert inputs.items() >= {"a.safetensors": "same", "saved": "same"}.items()
    tensors = load_file(tmp_path / "a.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
    assert osrm("verify", "merged", cwd=tmp_path).code == 1
