"""Moments that tie each layer's inputs in the model merged so far to those in the single models.

For ``sequential``. RegMean++ asks each layer to do on the merged model's inputs what the single models' layers would do
there; here it is asked for what they do on inputs of their own, so that it corrects the errors of the layers below.
"""

from collections.abc import Mapping, Sequence

import torch

from osrm_cli.merging.from_data.regmean_plus_plus import SequentialMoments
from osrm_cli.merging.from_data.single_moments import single_model_hooks
from osrm_cli.merging.from_data.task_models import TaskModel
from osrm_cli.merging.layer_data import Fields
from osrm_cli.merging.methods.layer_updates import LayerResult
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models.layer_inputs import find_shared_inputs, record_inputs
from osrm_cli.models.output_hooks import OutputHook, with_output_hooks
from osrm_cli.models.target_modules import is_conv1d

Moments = tuple[torch.Tensor, torch.Tensor]


class SequentialTargets(SequentialMoments):
    """Moments of a layer's inputs in the merged and in the single models, collected when the layer is asked for."""

    def __init__(self, models: Sequence[TaskModel], plan: MergePlan) -> None:
        super().__init__(models, plan)
        self._pairs: dict[str, list[Moments]] = {}

    def for_layer(self, layer: str, merged: Mapping[str, LayerResult]) -> Fields:
        """``C_t = E[x x^T]``, ``D_t = E[x* x^T]`` and ``W_0 (D_t - C_t)``, float64.

        ``x`` are the layer's inputs in the model merged so far, ``x*`` those of the same tokens in the single model.
        """
        source = self._sources[layer]
        if source not in self._pairs:
            hooks = {name: self._hook(name, result) for name, result in merged.items()}
            # One source at a time: the layers that share an input run one after the other.
            self._pairs = {source: [self._pair(index, source, hooks) for index in range(len(self._models))]}
        module = self._models[0].with_head_loaded().get_submodule(layer)
        weight = module.get_parameter("weight").detach().cpu().to(torch.float64)
        W_0 = weight.T if is_conv1d(module) else weight  # noqa: N806 - the papers' letters
        pairs = self._pairs[source]
        return {
            "second_moments": tuple(C for C, _ in pairs),
            "cross_moments": tuple(D for _, D in pairs),
            "drifts": tuple(W_0 @ (D - C) for C, D in pairs),
        }

    def _pair(self, index: int, source: str, merged: Mapping[str, OutputHook]) -> Moments:
        model = self._models[index]
        shell = model.with_head_loaded()
        targets = {source: shell.get_submodule(source)}
        inputs = find_shared_inputs(shell, targets, model.batch([0]))
        single = single_model_hooks(model, self._plan, index)
        seen: list[torch.Tensor] = []

        def note(_name: str, x: torch.Tensor, mask: torch.Tensor) -> None:
            seen.append(x[mask].cpu().to(torch.float64))

        tokens, C, D = 0, torch.zeros(()), torch.zeros(())  # noqa: N806
        for rows in model.batches():
            batch = model.batch(rows)
            for hooks in (merged, single):
                with with_output_hooks(shell, hooks):
                    record_inputs(shell, targets, inputs, batch, note)
            half = len(seen) // 2
            x, x_single = torch.cat(seen[:half]), torch.cat(seen[half:])
            seen.clear()
            tokens, C, D = tokens + len(x), C + x.T @ x, D + x_single.T @ x  # noqa: N806
        return C / tokens, D / tokens
