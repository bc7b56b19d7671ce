"""fusion_bench as a peer, where it is installed: its own functions, on full models, tensor by tensor.

python3 -m venv fb && fb/bin/pip install -c constraints.txt fusion-bench
PATH=$PATH:$PWD/fb/bin python -m benchmarks.beside

Its environment calls ``python -m benchmarks.peers.fusion_bench METHOD MODELS OUT TASK...``.
"""

import importlib
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import timing

Model = dict[str, Tensor]


def program() -> Path | None:
    """The Python that has it, beside its program in the path."""
    place = shutil.which("fusion_bench")
    return Path(place).resolve().with_name("python") if place else None


def merge(method: str, models: Path, tasks: list[str], out: Path) -> timing.Cost:
    """Merge full models by the rule that has our name; a whole process."""
    timing.remove(out)
    return timing.process([_python(), "-m", "benchmarks.peers.fusion_bench", method, models, out, *tasks])


def start(method: str) -> float:
    """Seconds until its environment has imported what a rule needs."""
    return _start(RULES[method][0])


@cache
def _start(module: str) -> float:
    return timing.process([_python(), "-c", f"import safetensors.torch, {module}"]).seconds


def _python() -> Path:
    found = program()
    if found is None:
        raise FileNotFoundError("fusion_bench is not in the path")
    return found


def _average(library: Any, base: Model, tuned: list[Model]) -> Model:
    merged: Model = library.state_dict_avg(tuned)
    return merged


def _task_arithmetic(library: Any, base: Model, tuned: list[Model]) -> Model:
    merged = base
    for model in tuned:
        merged = library.state_dict_add(merged, library.state_dict_sub(model, base))
    return merged


def _magmax(library: Any, base: Model, tuned: list[Model]) -> Model:
    arithmetic = importlib.import_module("fusion_bench.utils.state_dict_arithmetic")
    updates = [arithmetic.state_dict_sub(model, base) for model in tuned]
    merged: Model = arithmetic.state_dict_add(base, library._magmax_select(updates))
    return merged


def _each(rule: Callable[[Any, Tensor, Tensor], Tensor]) -> Callable[[Any, Model, list[Model]], Model]:
    """A rule for a whole model of one for a base weight ``(...)`` and the weights of all tasks ``(T, ...)``."""

    def merge_all(library: Any, base: Model, tuned: list[Model]) -> Model:
        return {
            name: rule(library, weight, torch.stack([model[name] for model in tuned])) for name, weight in base.items()
        }

    return merge_all


def _ties(library: Any, base: Tensor, tuned: Tensor) -> Tensor:
    updates = (tuned - base).flatten(1)
    merged: Tensor = library.ties_merging(updates, reset_thresh=0.2, merge_func="mean")
    return base + merged.view_as(base)


def _consensus(library: Any, base: Tensor, tuned: Tensor) -> Tensor:
    weights, plain = tuned.flatten(1), base.flatten()
    updates = weights - plain
    used: Tensor = library.generate_task_masks(updates, weights, plain, tall_mask_lambda=0.4)
    return base + (updates.sum(0) * (used.sum(0) >= 2)).view_as(base)  # as its construct_consensus_mask, which reads


def _trust_region(library: Any, base: Tensor, tuned: Tensor) -> Tensor:
    model = torch.nn.ParameterDict({"weight": base})
    updates = {str(task): {"weight": weight - base} for task, weight in enumerate(tuned)}
    given = {"zero_shot": True, "threshold_quantile": 0.99, "scaling_factor": 1.0}
    algorithm = SimpleNamespace(compute_vanilla_task_vectors=lambda: (model, updates), **given)
    with torch.no_grad():
        library.TaskArithmeticWithTrustRegionForCLIP.run(algorithm, None)
    merged: Tensor = model["weight"].data
    return merged


def _calibration(library: Any, base: Tensor, tuned: Tensor) -> Tensor:
    added = base + (tuned - base).sum(0)
    if base.dim() != 2:
        return added
    merged: Tensor = library.subspace_consistency_spectral_calibration_accelerated(base, list(tuned), added, 1.0)
    return merged


def _knots(library: Any, base: Tensor, tuned: Tensor) -> Tensor:
    if base.dim() != 2 or torch.equal(tuned, base.expand_as(tuned)):
        return base
    knots = importlib.import_module("fusion_bench.method.knots.knots_utils")
    left: Tensor
    left, sizes, right = knots.subspace_alignment(list(tuned - base))
    coordinates = torch.stack([sizes[:, None] * part for part in right]).flatten(1)
    merged: Tensor = library.ties_merging(coordinates, reset_thresh=0.2, merge_func="mean")
    return base + left @ merged.view(len(sizes), -1)


# By our method: the module whose functions do it, and how they are called.
RULES = {
    "task-arith": ("fusion_bench.utils.state_dict_arithmetic", _task_arithmetic),
    "average": ("fusion_bench.utils.state_dict_arithmetic", _average),
    "ties": ("fusion_bench.method.ties_merging.ties_merging_utils", _each(_ties)),
    "magmax": ("fusion_bench.method.magmax.magmax", _magmax),
    "consensus": ("fusion_bench.method.tall_mask.utils", _each(_consensus)),
    "tatr": ("fusion_bench.method.trust_region.clip_task_arithmetic", _each(_trust_region)),
    "svc": ("fusion_bench.method.singular_value_calibration.utils", _each(_calibration)),
    "knots-ties": ("fusion_bench.method.ties_merging.ties_merging_utils", _each(_knots)),
}


def main() -> None:
    method, models, out, *tasks = sys.argv[1:]
    module, rule = RULES[method]
    base, *tuned = (load_file(Path(models) / name / "model.safetensors") for name in ("base", *tasks))
    merged = rule(importlib.import_module(module), base, tuned)
    Path(out).mkdir(parents=True)
    save_file({name: x.contiguous() for name, x in merged.items()}, Path(out) / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
