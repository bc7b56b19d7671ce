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
from osrm_cli.models.target_modules import is_conv1d


class SequentialTargets(SequentialMoments):
    """Moments of a layer's inputs in the merged and in the single models, collected when the layer is asked for."""

    def __init__(self, models: Sequence[TaskModel], plan: MergePlan) -> None:
        super().__init__(models, plan)
        hooks = [single_model_hooks(model, plan, index) for index, model in enumerate(models)]
        self._single_passes = [self._begin_passes(changes, index) for index, changes in enumerate(hooks)]

    def for_layer(self, layer: str, merged: Mapping[str, LayerResult]) -> Fields:
        """``C_t = E[x x^T]``, ``D_t = E[x* x^T]`` and ``W_0 (D_t - C_t)``, float64.

        ``x`` are the layer's inputs in the model merged so far, ``x*`` those of the same tokens in the single model.
        """
        pairs = self._moments_of(layer, merged)
        module = self._models[0].with_head_loaded().get_submodule(layer)
        weight = module.get_parameter("weight").detach().cpu().to(torch.float64)
        W_0 = weight.T if is_conv1d(module) else weight  # noqa: N806 - the papers' letters
        return {
            "second_moments": tuple(C for C, _ in pairs),
            "cross_moments": tuple(D for _, D in pairs),
            "drifts": tuple(W_0 @ (D - C) for C, D in pairs),
        }

    def _collect_moments(self, index: int, source: str) -> tuple[torch.Tensor, torch.Tensor]:
        """``C_t`` and ``D_t``."""
        tokens, C, D = 0, torch.zeros(()), torch.zeros(())  # noqa: N806
        passes = self._passes[index].run_to(source), self._single_passes[index].run_to(source)
        for (merged, mask), (single, _) in zip(*passes, strict=True):
            x, x_single = (inputs[mask].cpu().to(torch.float64) for inputs in (merged, single))
            tokens, C, D = tokens + len(x), C + x.T @ x, D + x_single.T @ x  # noqa: N806
        return C / tokens, D / tokens
