"""Names of layers whose dots were replaced by underscores, as kohya's scripts write them, and the way back.

``down_blocks_0_attentions_1_proj_in`` could be split in many ways. The way back therefore knows the words that the
modules of diffusion models and of their text encoders consist of; a name with any other word is refused, not guessed.
"""

import re

# Names of modules that contain underscores themselves, and those that do not: of UNets and transformers of diffusers,
# of text encoders of transformers, and of both kinds of models in their authors' layout.
_COMPOUND_TEXT = """
down_blocks mid_block up_blocks transformer_blocks conv_in conv_out proj_in proj_out to_q to_k to_v to_out
time_embedding add_embedding time_emb_proj class_embedding encoder_hid_proj cond_proj linear_1 linear_2 conv_shortcut
motion_modules temporal_transformer_blocks time_pos_embed norm_in ff_in

single_transformer_blocks joint_transformer_blocks add_q_proj add_k_proj add_v_proj to_add_out to_gate proj_mlp
ff_context norm1_context norm_out context_embedder x_embedder pos_embed time_text_embed timestep_embedder
text_embedder guidance_embedder caption_projection adaln_single patch_embed condition_embedder time_embedder time_proj
image_embedder img_mlp txt_mlp img_mod txt_mod img_in txt_in noise_refiner context_refiner feed_forward
adaLN_modulation cap_embedder

text_model self_attn q_proj k_proj v_proj out_proj o_proj gate_proj up_proj down_proj text_projection wi_0 wi_1
language_model

double_blocks single_blocks img_attn txt_attn time_in vector_in guidance_in in_layer out_layer final_layer cross_attn
time_embed label_emb input_blocks middle_block output_blocks in_layers emb_layers out_layers skip_connection
joint_blocks context_block x_block k_img v_img time_projection text_embedding
"""
_SIMPLE_TEXT = """
attentions resnets downsamplers upsamplers attn attn1 attn2 ff net proj conv conv1 conv2 norm norm1 linear op out
encoder decoder layers layer block blocks mlp fc1 fc2 model SelfAttention EncDecAttention DenseReluDense q k v o wo wi
qkv lin modulation linear1 linear2 ffn attention w1 w2 w3 img txt
"""
_COMPOUNDS = frozenset(_COMPOUND_TEXT.split())
_SIMPLE = frozenset(_SIMPLE_TEXT.split())
_LONGEST = max(compound.count("_") + 1 for compound in _COMPOUNDS)


def flatten_layer_name(layer: str) -> str:
    """The name with underscores for dots.

    Raises:
        ValueError: If it would not come back from there.
    """
    flat = layer.replace(".", "_")
    if unflatten_layer_name(flat) != layer:
        raise ValueError(f"{layer} could not be told from other names")
    return flat


def unflatten_layer_name(flat: str) -> str:
    """The name with its dots.

    Raises:
        ValueError: If it holds a word that is not part of a known module's name.
    """
    words, parts = flat.split("_"), []
    while words:
        size = next((n for n in range(_LONGEST, 1, -1) if "_".join(words[:n]) in _COMPOUNDS), 1)
        part = "_".join(words[:size])
        if size == 1 and part not in _SIMPLE and not part.isdecimal():
            raise ValueError(f"{part!r} is not part of a known module's name")
        parts.append(part)
        del words[:size]
    return ".".join(parts)


# Stable Diffusion 1, 2 and XL have two residual blocks on each level.
_PER_LEVEL = 2
_RESNET = {
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_OUTSIDE = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.2": "conv_out",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}


def to_diffusers_unet(layer: str) -> str:
    """A layer of a Stable Diffusion UNet in its authors' layout by its name in diffusers; others stay as they are."""
    if layer in _OUTSIDE:
        return _OUTSIDE[layer]
    if block := re.fullmatch(r"middle_block\.([012])\.(.+)", layer):
        return f"mid_block.{_MIDDLE[block[1]]}.{_RESNET.get(block[2], block[2])}"
    block = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", layer)
    if not block:
        return layer
    index, rest = int(block[2]), block[4]
    if block[1] == "input":
        level, position = divmod(index - 1, _PER_LEVEL + 1)
        side, sampler = "down_blocks", "downsamplers" if rest == "op" else None
    else:
        level, position = divmod(index, _PER_LEVEL + 1)
        side, sampler = "up_blocks", "upsamplers" if rest == "conv" else None
    if sampler:
        return f"{side}.{level}.{sampler}.0.conv"
    kind = "resnets" if block[3] == "0" else "attentions"
    return f"{side}.{level}.{kind}.{position}.{_RESNET.get(rest, rest)}"
