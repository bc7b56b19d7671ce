"""What vLLM and llama.cpp would refuse of a merged adapter that writes, or misread: see docs/guides/text-tasks.md.

Only what the adapters themselves tell; whether a model has a layer of some name, its server says.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from osrm_cli.adapters.layers import find_expert_parameter
from osrm_cli.merging.plan import MergePlan

VLLM_MAX_RANK = 512  # of its LoRAConfig
_OUTPUT_LAYER = "lm_head"
_STACKED = {"gate_up_proj", "down_proj"}


def list_serving_problems(plan: MergePlan, ranks: Mapping[str, int], shared: Collection[str]) -> list[str]:
    """Warnings about a merged adapter, each with what to do.

    Args:
        plan: What was merged.
        ranks: Rank of each layer of the result.
        shared: What the adapters have trained as a whole: tensors of base-model modules, or rows of them.
    """
    problems = list(_list_target_problems(plan))
    if shared:
        problems.append("vLLM and llama.cpp load no adapter with modules_to_save or trained rows: use --as model")
    least, rank = min(ranks.values()), max(ranks.values())
    if rank > VLLM_MAX_RANK:
        problems.append(f"vLLM loads ranks up to {VLLM_MAX_RANK}, this one is {rank}: give --rank {VLLM_MAX_RANK}")
    if least < rank:
        problems.append(
            f"llama.cpp reads one lora_alpha for all layers and divides it by each layer's own rank, here {least} to "
            f"{rank}, so that a GGUF of this adapter would be wrong: convert the result of --as model"
        )
    return problems


def list_serving_notes(plan: MergePlan) -> list[str]:
    """What a server cannot take whatever is merged: the kind of model."""
    is_encoder_decoder = any(adapter.config.task_type == "SEQ_2_SEQ_LM" for adapter in plan.adapters)
    return ["vLLM serves no encoder-decoder that writes text, such as T5 and BART"] if is_encoder_decoder else []


def _list_target_problems(plan: MergePlan) -> Iterator[str]:
    """What is wrong with the layers that are adapted."""
    if any(adapter.config.fan_in_fan_out for adapter in plan.adapters):
        yield (
            "vLLM takes no adapters of GPT-2, and llama.cpp's converter turns their factors round, for square layers "
            "without an error: use --as model"
        )
    words = sorted(
        {
            name
            for layer, shape in plan.shapes.items()
            if (name := layer.rpartition(".")[2]) == _OUTPUT_LAYER or shape.embedding
        }
    )
    if words:
        yield (
            f"vLLM loads an adapted {' and '.join(words)} with some models alone, such as Llama, and refuses the "
            "adapter with others, such as Qwen 2, Mistral and Gemma 2: use --as model there"
        )
    stacks: dict[str, set[str]] = defaultdict(set)
    for adapter in plan.adapters:
        for layer in adapter.layers:
            if parameter := find_expert_parameter(adapter.config, layer):
                module, _, name = parameter.rpartition(".")
                stacks[module].add(name)
    if stacks:
        halves = (
            "" if all(names >= _STACKED for names in stacks.values()) else ", and vLLM none of one of the two alone"
        )
        yield f"llama.cpp's converter knows no factors of stacked experts{halves}: use --as model"
