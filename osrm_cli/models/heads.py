"""A classifier's last layer fitted by regression, before anything else of the model is trained."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from osrm_cli.calibration import head_map as calibrating
from osrm_cli.models import fast_dropout as dropout
from osrm_cli.tasks.task import Label, Task

STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # weight of one example against a small head
_FOLDS = 5
_PROBED = 1000  # examples that a head is fitted to before training


def fit(head: torch.nn.Linear, task: Task, inputs: torch.Tensor, labels: Sequence[Label]) -> float:
    """Fit a linear layer in place: logistic regression, for a score ridge regression, of standardised inputs.

    The strength is chosen by cross-validated loss: a head that knows its examples by heart teaches the update nothing.

    Args:
        head: The layer.
        task: What it is to predict.
        inputs: ``(n, d)``.
        labels: One for each row; for classes, every class among them.

    Returns:
        The strength, one of ``STRENGTHS``; the least of them where a class has a single example.
    """
    intercept = head.bias is not None
    if task.regression:
        model = Ridge(alpha=1 / STRENGTHS[0], fit_intercept=intercept)
        grid, goal = {"ridge__alpha": [1 / strength for strength in STRENGTHS]}, "neg_mean_squared_error"
        folds = min(_FOLDS, len(labels))
    else:
        model = LogisticRegression(C=STRENGTHS[0], fit_intercept=intercept, max_iter=1000)
        grid, goal = {"logisticregression__C": list(STRENGTHS)}, "neg_log_loss"
        folds = min(_FOLDS, *Counter(labels).values())
    steps = make_pipeline(StandardScaler(with_mean=intercept), model)
    if folds > 1:
        steps = GridSearchCV(steps, grid, scoring=goal, cv=folds).fit(inputs.numpy(), labels).best_estimator_
    else:
        steps.fit(inputs.numpy(), labels)
    scaler, model = steps
    W = torch.as_tensor(model.coef_ / scaler.scale_).reshape(-1, inputs.shape[1])  # noqa: N806 - as in W x + b
    b = torch.as_tensor(model.intercept_).reshape(-1)
    if intercept:
        b = b - W @ torch.as_tensor(scaler.mean_)
    if task.num_labels == 2:  # one logit, which is the difference of the two
        W, b = torch.cat([-W, W]) / 2, torch.cat([-b, b]) / 2  # noqa: N806
    with torch.no_grad():
        head.weight.copy_(W)
        if intercept:
            head.bias.copy_(b)
    return float(1 / model.alpha if task.regression else model.C)


def fit_untrained(
    model: torch.nn.Module,
    tokenizer: Any,
    task: Task,
    examples: Sequence[Mapping[str, Any]],
    device: torch.device,
    bf16: bool,
) -> None:
    """Fit the head's last layer to what the untrained model puts out, so that the update has only the rest to learn.

    A random head makes the update learn offsets and scales that a head can have for nothing, at the other tasks' cost;
    compare linear probing before fine-tuning, arXiv:2202.10054. Left as it is where a class has no example.

    Args:
        model: A PEFT classifier, changed in place.
        tokenizer: Knows how to pad.
        task: What is learned.
        examples: Encodings with their labels under ``label``; the first thousand are used.
        device: Where to compute.
        bf16: Whether to compute in bfloat16, as training then does.
    """
    examples = examples[:_PROBED]
    labels = [example["label"] for example in examples]
    if not task.regression and len(set(labels)) < task.num_labels:
        return
    inputs = [{name: values for name, values in example.items() if name != "label"} for example in examples]
    model.train().to(device)  # with dropout as in training: else its noise passes through a head that ignores it
    _, layer = calibrating.head_layer(model)
    with dropout.cheap(device), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        found = calibrating.representations(model, inputs, tokenizer, device, 64, lambda _: None)
    fit(layer, task, found.double(), labels)
