"""The eight GLUE tasks (arXiv:1804.07461): columns, classes in the order of GLUE's codes, metrics; a row each."""

from typing import Any

from osrm_cli.errors import OsrmError

GLUE_HUB_ID = "nyu-mll/glue"

GLUE: dict[str, dict[str, Any]] = {
    "cola": {"columns": ("sentence",), "labels": ("unacceptable", "acceptable"), "metrics": ("matthews",)},
    "sst2": {"columns": ("sentence",), "labels": ("negative", "positive"), "metrics": ("accuracy",)},
    "mrpc": {
        "columns": ("sentence1", "sentence2"),
        "labels": ("not_equivalent", "equivalent"),
        "metrics": ("accuracy", "f1"),
    },
    "rte": {
        "columns": ("sentence1", "sentence2"),
        "labels": ("entailment", "not_entailment"),
        "metrics": ("accuracy",),
    },
    "stsb": {"columns": ("sentence1", "sentence2"), "labels": None, "metrics": ("pearson", "spearman")},
    "qnli": {"columns": ("question", "sentence"), "labels": ("entailment", "not_entailment"), "metrics": ("accuracy",)},
    "mnli": {
        "columns": ("premise", "hypothesis"),
        "labels": ("entailment", "neutral", "contradiction"),
        "metrics": ("accuracy",),
    },
    "qqp": {
        "columns": ("question1", "question2"),
        "labels": ("not_duplicate", "duplicate"),
        "metrics": ("accuracy", "f1"),
    },
}


def list_glue_splits(task: str) -> tuple[str, ...]:
    """The splits of a task; the hub says ``validation`` where files say ``dev``."""
    ends = ("_matched", "_mismatched") if task == "mnli" else ("",)
    return ("train", *(f"dev{end}" for end in ends), *(f"test{end}" for end in ends))


def load_glue_columns(task: str, split: str, limit: int | None = None) -> dict[str, list[Any]]:
    """The columns of one split, through ``datasets``: from its cache, else from the hub unless that is forbidden.

    Raises:
        OsrmError: If there is neither.
    """
    from datasets import load_dataset
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # our one error is enough
    try:
        dataset = load_dataset(GLUE_HUB_ID, task, split=split.replace("dev", "validation"))
    except (OSError, ValueError) as error:
        raise OsrmError(
            f"GLUE's '{task}' is not in the cache of datasets and cannot be had: {str(error).splitlines()[0]}",
            "use --data mini (generated) or --data FOLDER, or go online once, or set HF_HOME to a filled cache",
        ) from None
    columns: dict[str, list[Any]] = dataset.select(range(len(dataset))[:limit]).to_dict()
    return columns
