"""Heads for tasks whose teachers have another base model: new ones, learned with the merged update.

A head reads the representations of its own base model, so the teacher's is of no use here. A task's head serves that
task alone: learning it disturbs no other task, and what it takes over the shared update need not do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from osrm_cli import seeding
from osrm_cli.merging.from_data.matching import prediction_divergence
from osrm_cli.models.backbone import Backbone, TaskHead
from osrm_cli.models.classifier import head_modules, with_empty_head
from osrm_cli.models.linear_head import find_head_layer

SPREAD = 0.02  # of a head's new weights, where the model's settings have no other
STRENGTHS = tuple(10.0**power for power in range(-4, 2))  # pull of a head's last layer towards zero
FOLDS, ITERATIONS = 5, 50


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


def fit_student_head(head: StudentHead, pooled: Tensor, logits: Tensor, is_regression: bool) -> float:
    """Fit the last layer to what a teacher says, on standardized inputs, in place.

    Of classes the divergence is minimised, not the difference of logits: those of a teacher that is sure are large, and
    a head that meets them is sure where it errs. The pull towards a small head is chosen by cross-validation.

    Args:
        head: The head.
        pooled: Inputs of its last layer, ``(n, d)``.
        logits: The teacher's, ``(n, num_labels)``.
        is_regression: Whether they are scores.

    Returns:
        The strength of the pull, one of ``STRENGTHS``.
    """
    _, layer = find_head_layer(head.load())
    x, y = pooled.double(), logits.double()
    has_bias = layer.bias is not None
    centre = x.mean(0) if has_bias else torch.zeros_like(x[0])
    spread = x.std(0, correction=0).clamp_min(1e-6)
    x = (x - centre) / spread
    compare = functional.mse_loss if is_regression else prediction_divergence
    folds = torch.arange(len(x)) % FOLDS

    def held_out_loss(strength: float) -> float:
        parts = [folds == fold for fold in range(min(FOLDS, len(x)))]
        fits = [(_fit_student_layer(x[~part], y[~part], has_bias, strength, compare), part) for part in parts]
        return sum(float(compare(x[part] @ W.T + b, y[part])) * int(part.sum()) for (W, b), part in fits)

    best = min(STRENGTHS, key=held_out_loss) if len(x) > 1 else STRENGTHS[-1]
    W, b = _fit_student_layer(x, y, has_bias, best, compare)  # noqa: N806 - as in W x + b
    with torch.no_grad():
        layer.weight.copy_(W / spread)
        if has_bias:
            layer.bias.copy_(b - (W / spread) @ centre)
    return best


def _fit_student_layer(
    x: Tensor, y: Tensor, has_bias: bool, strength: float, compare: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Weight and bias, perhaps zero, that minimise a loss and ``strength`` times ``||W||^2``, by L-BFGS."""
    weight = x.new_zeros(y.shape[1], x.shape[1], requires_grad=True)
    bias = x.new_zeros(y.shape[1], requires_grad=True)
    search = torch.optim.LBFGS(
        [weight, bias] if has_bias else [weight], max_iter=ITERATIONS, line_search_fn="strong_wolfe"
    )

    def step() -> Tensor:
        search.zero_grad()
        loss = compare(x @ weight.T + bias, y) + strength * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        search.step(step)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
