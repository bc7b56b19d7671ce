"""Heads for tasks whose teachers have another base model: new ones, learned with the merged update.

A head reads the representations of its own base model, so the teacher's is of no use here. A task's head serves that
task alone: learning it disturbs no other task, and what it takes over the shared update need not do.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from osrm_cli import seeding
from osrm_cli.models.backbone import Backbone, TaskHead, with_empty_head
from osrm_cli.models.classifier import head_modules
from osrm_cli.models.heads import find_head_layer

SPREAD = 0.02  # of a head's new weights, where the model's settings have no other
STRENGTHS = tuple(10.0**power for power in range(-2, 5))  # of ridge regression, for standardized inputs


@dataclass(frozen=True)
class StudentHead(TaskHead):
    """A head in training: its modules outside of the backbone have gradients; ``tensors`` are its parts within.

    Attributes:
        modules: All of its modules, as an adapter's ``modules_to_save`` names them.
    """

    modules: tuple[str, ...]

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained."""
        return [parameter for parameter in self.classifier.parameters() if parameter.requires_grad]

    def read(self) -> dict[str, Tensor]:
        """The whole head by its names in the base model, as it is now."""
        names = tuple(f"{name}." for name in self.modules)
        state = self.load().state_dict()
        return {name: x.detach().clone() for name, x in state.items() if name.startswith(names)}


def make_student_head(backbone: Backbone, num_labels: int, seed: int, task: str) -> StudentHead:
    """A random head on a base model, as transformers would begin: normal weights, no biases.

    Parts of the backbone that its checkpoint lacks, such as a pooler, stay as the backbone has drawn them.

    Args:
        backbone: The base model.
        num_labels: Outputs of the head.
        seed: Of the weights.
        task: Its name, which the weights depend on too.
    """
    classifier = with_empty_head(backbone.model, num_labels)
    classifier.requires_grad_(False)
    spread = getattr(classifier.config, "initializer_range", None) or SPREAD
    draw = seeding.generator(seed, "head", task)
    for module in head_modules(classifier):
        for name, weight in classifier.get_submodule(module).named_parameters():
            values = torch.randn(weight.shape, generator=draw) * spread
            if weight.ndim == 1:
                values = torch.full(weight.shape, 0.0 if name.endswith("bias") else 1.0)
            weight.data = values.to(weight)
            weight.requires_grad_()
    within = tuple(f"{name}." for name in backbone.heads if name.startswith(f"{classifier.base_model_prefix}."))
    tensors = {name: x.clone() for name, x in classifier.state_dict().items() if name.startswith(within)}
    return StudentHead(classifier, tensors, tuple(backbone.heads))


def fit_student_head(head: StudentHead, pooled: Tensor, logits: Tensor, is_regression: bool) -> None:
    """Fit the last layer to what a teacher says, by ridge regression whose strength is cross-validated, in place.

    Args:
        head: The head.
        pooled: Inputs of its last layer, ``(n, d)``.
        logits: The teacher's, ``(n, num_labels)``. Of classes only differences count: each row's mean is taken off.
        is_regression: Whether they are scores.
    """
    from sklearn.linear_model import RidgeCV  # which takes a second to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _, layer = find_head_layer(head.load())
    wanted = logits if is_regression else logits - logits.mean(1, keepdim=True)
    has_bias = layer.bias is not None
    steps = make_pipeline(StandardScaler(with_mean=has_bias), RidgeCV(STRENGTHS, fit_intercept=has_bias))
    scaler, model = steps.fit(pooled.double().cpu().numpy(), wanted.double().cpu().numpy())
    W = torch.as_tensor(model.coef_).reshape(wanted.shape[1], -1) / torch.as_tensor(scaler.scale_)  # noqa: N806
    with torch.no_grad():
        layer.weight.copy_(W)
        if has_bias:
            layer.bias.copy_(torch.as_tensor(model.intercept_) - W @ torch.as_tensor(scaler.mean_))
