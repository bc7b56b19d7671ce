"""A classifier's last linear layer: find it, compute its inputs, fit it by regression; the loss of what it puts out."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch.nn import functional

from osrm_cli.errors import OsrmError
from osrm_cli.models.output_hooks import with_last_layer_bypassed
from osrm_cli.models.token_batches import Encoding, compute_logits
from osrm_cli.tasks.label_sets import label_matrix
from osrm_cli.tasks.task import Label, Task

REGULARIZATION_STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # weight of one example against a small head
_FOLDS = 5


def fit_linear_head(head: torch.nn.Linear, task: Task, inputs: torch.Tensor, labels: Sequence[Label]) -> float:
    """Fit a linear layer in place, on standardized inputs: logistic regression, or ridge regression for a score.

    The strength is chosen by cross-validated loss: an overfitted head would leave the update nothing to learn.

    Args:
        head: The layer.
        task: The task to predict.
        inputs: ``(n, d)``.
        labels: One for each row, see ``label_sets.find_label_without_contrast``.

    Returns:
        The strength, one of ``REGULARIZATION_STRENGTHS``; the least of them where a class has a single example, and
        over the classes where any number of them holds.
    """
    has_bias = head.bias is not None
    if task.is_multi_label:
        flags = label_matrix(labels, task.num_labels)
        rows = [
            _fit_linear_head_rows(False, inputs, flags[:, index].tolist(), has_bias) for index in range(task.num_labels)
        ]
        weights, biases, strengths = zip(*rows, strict=True)
        W, b, strength = torch.cat(weights), torch.cat(biases), float(min(strengths))  # noqa: N806 - as in W x + b
    else:
        W, b, strength = _fit_linear_head_rows(task.regression, inputs, labels, has_bias)  # noqa: N806
        if task.num_labels == 2:  # one logit, which is the difference of the two
            W, b = torch.cat([-W, W]) / 2, torch.cat([-b, b]) / 2  # noqa: N806
    with torch.no_grad():
        head.weight.copy_(W)
        if has_bias:
            head.bias.copy_(b)
    return strength


def _fit_linear_head_rows(
    is_regression: bool, inputs: torch.Tensor, labels: Sequence[Label], intercept: bool
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Weight ``(k, d)``, bias ``(k,)`` and strength: one row for a score and for two classes, else one for each.

    Raises:
        OsrmError: If the inputs are not finite.
    """
    # scikit-learn takes a second to import, and callers that only read a head do not need it.
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not torch.isfinite(inputs).all():
        raise OsrmError("no head can be fitted: the model's outputs hold NaN or infinity", "look at its start's scale")
    if is_regression:
        model = Ridge(alpha=1 / REGULARIZATION_STRENGTHS[0], fit_intercept=intercept)
        grid, goal = {"ridge__alpha": [1 / strength for strength in REGULARIZATION_STRENGTHS]}, "neg_mean_squared_error"
        folds = min(_FOLDS, len(labels))
    else:
        model = LogisticRegression(C=REGULARIZATION_STRENGTHS[0], fit_intercept=intercept, max_iter=1000)
        grid, goal = {"logisticregression__C": list(REGULARIZATION_STRENGTHS)}, "neg_log_loss"
        folds = min(_FOLDS, *Counter(labels).values())
    steps = make_pipeline(StandardScaler(with_mean=intercept), model)
    if folds > 1:
        steps = GridSearchCV(steps, grid, scoring=goal, cv=folds).fit(inputs.numpy(), labels).best_estimator_
    else:
        steps.fit(inputs.numpy(), labels)
    scaler, model = steps
    W = torch.as_tensor(model.coef_ / scaler.scale_).reshape(-1, inputs.shape[1])  # noqa: N806
    b = torch.as_tensor(model.intercept_).reshape(-1)
    if intercept:
        b = b - W @ torch.as_tensor(scaler.mean_)
    return W, b, float(1 / model.alpha if is_regression else model.C)


def find_head_layer(model: torch.nn.Module) -> tuple[str, torch.nn.Linear]:
    """The linear layer of a sequence classifier that computes its logits, and its name in the base model.

    Args:
        model: A classifier of transformers, such as ``classifier_with_head`` returns, or PEFT's wrapper of one, such as
            ``with_adapter_on_backbone`` yields. Of a module that PEFT keeps twice, the adapter's copy counts.

    Raises:
        OsrmError: If the head does not end in a plain linear layer.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    adapted_modules = [f"{name}." for name, module in base.named_modules() if isinstance(module, LoraLayer)]
    candidates = [
        (name, module)
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not name.startswith((f"{base.base_model_prefix}.", *adapted_modules))
        and "original_module" not in name.split(".")
    ]
    if not candidates or candidates[-1][1].out_features != base.config.num_labels:
        raise OsrmError(
            f"the head of {type(base).__name__} does not end in a plain linear layer of {base.config.num_labels} "
            "outputs",
            "such a head cannot be calibrated; merge without --calibrate",
        )
    name, layer = candidates[-1]
    return re.sub(r"\.modules_to_save\.[^.]+", "", name), layer


def compute_representations(
    model: torch.nn.Module,
    encodings: Sequence[Encoding],
    tokenizer: Any,
    device: torch.device,
    batch_size: int,
    advance: Callable[[int], None],
) -> torch.Tensor:
    """Inputs of the head's last linear layer, at the position that the model pools.

    Args:
        model: A classifier, see ``find_head_layer``, in evaluation mode.
        encodings: From ``token_batches.tokenize_for_classifier``.
        tokenizer: Supplies the padding ids.
        device: Device of the model.
        batch_size: Maximum examples per batch.
        advance: Called with the number of examples processed.

    Returns:
        ``(n, d)``, float32, in the order of ``encodings``.
    """
    _, layer = find_head_layer(model)
    with with_last_layer_bypassed(layer):
        return compute_logits(model, encodings, tokenizer, device, batch_size, advance)


def sum_classifier_losses(logits: torch.Tensor, task: Task, labels: Sequence[Label]) -> torch.Tensor:
    """Sum of the examples' losses, the one that training has.

    Cross-entropy, its mean over the classes where any number of them holds, or the squared error of a score.
    """
    targets = torch.tensor(labels, device=logits.device)
    if task.is_multi_label:
        flags = torch.as_tensor(label_matrix(labels, task.num_labels), device=logits.device).float()
        total = functional.binary_cross_entropy_with_logits(logits.float(), flags, reduction="sum")
        return total / task.num_labels
    if task.regression:
        return functional.mse_loss(logits.float().squeeze(-1), targets.float(), reduction="sum")
    return functional.cross_entropy(logits.float(), targets, reduction="sum")
