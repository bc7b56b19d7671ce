"""fusion_bench as a peer, where it is installed: its own functions, on full models, tensor by tensor.

python3 -m venv fb && fb/bin/pip install fusion-bench && PATH=$PATH:$PWD/fb/bin python -m benchmarks.beside

Its environment calls ``python -m benchmarks.peers.fusion_bench METHOD MODELS OUT TASK...``.
"""

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks import timing


def program() -> Path | None:
    """The Python that has it, beside its program in the path."""
    place = shutil.which("fusion_bench")
    return Path(place).with_name("python") if place else None


def merge(method: str, models: Path, tasks: list[str], out: Path) -> timing.Cost:
    """Merge full models; a whole process."""
    found = program()
    if found is None:
        raise FileNotFoundError("fusion_bench is not in the path")
    timing.remove(out)
    return timing.process([found, "-m", "benchmarks.peers.fusion_bench", method, models, out, *tasks])


def main() -> None:
    method, models, out, *tasks = sys.argv[1:]
    base, *tuned = (load_file(Path(models) / name / "model.safetensors") for name in ("base", *tasks))
    if method == "ties":
        import torch
        from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging

        merged = {}
        for name, weight in base.items():
            updates = torch.stack([(model[name] - weight).reshape(-1) for model in tuned])
            merged[name] = weight + ties_merging(updates, reset_thresh=0.2, merge_func="mean").view_as(weight)
    else:
        from fusion_bench.utils.state_dict_arithmetic import state_dict_add, state_dict_sub

        merged = base
        for model in tuned:
            merged = state_dict_add(merged, state_dict_sub(model, base))
    Path(out).mkdir(parents=True)
    save_file(merged, Path(out) / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
