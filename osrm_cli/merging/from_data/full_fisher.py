"""The diagonal Fisher information of full models, each run as it is, with every parameter's gradient."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from osrm_cli.adapters.task_data import AdapterTaskSample
from osrm_cli.adapters.tokenizer_files import TOKENIZER_FILES
from osrm_cli.errors import OsrmError
from osrm_cli.merging.from_data.fisher import FisherInformation, example_loss
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models.backbone import check_model_positions
from osrm_cli.models.classifier import load_classifier, load_tokenizer, load_without_weights
from osrm_cli.models.full.full_model import FullModel
from osrm_cli.models.token_batches import check_model_vocabulary, collate_batch, tokenize_for_classifier
from osrm_cli.progress import Progress


class FullFisherInformation(FisherInformation):
    """Fisher information of every tensor that full models share with their base model, in files.

    Args:
        plan: Its adapters are full models.
        samples: Their labelled examples, in their order.
        base_dir: The base model, whose tokenizer counts for a model without one.
        device: Where the models run.
        folder: An existing folder for the files; they can go when the merge is done.
        progress: Draws a bar.

    Raises:
        OsrmError: If adapters or models that write text are among the models, or a model cannot be run.
    """

    def __init__(
        self,
        plan: MergePlan,
        samples: Sequence[AdapterTaskSample],
        base_dir: Path,
        device: torch.device,
        folder: Path,
        progress: Progress,
    ) -> None:
        self._paths = [folder / f"{adapter.name}.safetensors" for adapter in plan.adapters]
        norms = {}
        with progress("fisher", sum(len(sample.data.examples) for sample in samples), "examples") as advance:
            for sample, path in zip(samples, self._paths, strict=True):
                if not isinstance(sample.adapter, FullModel):
                    raise OsrmError(
                        f"method fisher takes adapters or full models, not both: {sample.adapter.source} is an adapter",
                        "osrm extract makes adapters of full models",
                    )
                if sample.data.task.is_text:
                    raise OsrmError(
                        f"method fisher reads the texts of full classifiers, {sample.adapter.source} writes text",
                        "osrm extract makes adapters of full models, which it reads",
                    )
                diagonal = full_fisher_diagonal(sample.adapter, sample, plan.layers, base_dir, device, advance)
                norms[sample.adapter.name] = self._save_information(path, diagonal)
        examples = {sample.adapter.name: sample.record for sample in samples}
        self.record = {"examples": examples, "fisher_norms": norms}


def full_fisher_diagonal(
    full: FullModel,
    sample: AdapterTaskSample,
    names: Sequence[str],
    base_dir: Path,
    device: torch.device,
    advance: Callable[[int], None],
) -> dict[str, Tensor]:
    """``(1/n) sum_i (d log p(y_i | x_i) / dW)^2`` at the model's own weights, one example at a time, float32.

    Args:
        full: The model.
        sample: Its labelled examples.
        names: Layers and tensors, of which those that the model does not have are zero elsewhere.
        base_dir: The base model.
        device: Where the model runs.
        advance: Called with 1 after each example.

    Returns:
        By layer or tensor, as ``FullModel.update`` orients it.
    """
    has_tokenizer = any((full.folder / name).is_file() for name in TOKENIZER_FILES)
    tokenizer = load_tokenizer(full.folder if has_tokenizer else base_dir)
    hint = "write max_length = {} or less into the task's task.toml"
    check_model_positions(load_without_weights(full.folder), full.folder, sample.max_length, hint)
    task, examples = sample.data.task, sample.data.examples
    model = load_classifier(full.folder, task.num_labels, tokenizer, torch.float32, seed=0, device=device).model
    model.requires_grad_(True).train(False)
    encodings = tokenize_for_classifier(tokenizer, examples, sample.max_length)
    check_model_vocabulary(tokenizer, encodings, model, full.folder)
    parameters = dict(model.named_parameters())
    wanted = {name: parameters[full.parameters[name]] for name in names if name in full.parameters}
    sums = {name: torch.zeros_like(parameter) for name, parameter in wanted.items()}
    for encoding, label in zip(encodings, sample.data.labels, strict=True):
        logits = model(**collate_batch([encoding], tokenizer, device)).logits[0]
        example_loss(task, logits, label).backward()  # type: ignore[no-untyped-call]
        for name, parameter in wanted.items():
            if parameter.grad is not None:
                sums[name] += parameter.grad.square()
        model.zero_grad(set_to_none=True)
        advance(1)
    return {name: full.oriented(name, total.cpu() / len(examples)).contiguous() for name, total in sums.items()}
