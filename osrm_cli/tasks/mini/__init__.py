"""Eight small generated tasks that ship with the package; ``scripts/generate_mini_tasks.py`` wrote their files."""

from pathlib import Path
from typing import Any

MINI_FOLDER = Path(__file__).parent

_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

MINI: dict[str, dict[str, Any]] = {
    # Is the sentence grammatical?
    "mini-grammar": {"columns": ("sentence",), "labels": ("unacceptable", "acceptable"), "metrics": ("matthews",)},
    # Is the guest pleased?
    "mini-mood": {"columns": ("sentence",), "labels": ("negative", "positive"), "metrics": ("accuracy",)},
    # Do two pieces of business news say the same?
    "mini-paraphrase": {"columns": _PAIR, "labels": ("not_equivalent", "equivalent"), "metrics": ("accuracy", "f1")},
    # Do two questions about a computer ask the same?
    "mini-duplicate": {
        "columns": ("question1", "question2"),
        "labels": ("not_duplicate", "duplicate"),
        "metrics": ("accuracy", "f1"),
    },
    # How much do two sports scenes have in common, from 0 to 5?
    "mini-similarity": {"columns": _PAIR, "labels": None, "metrics": ("pearson", "spearman")},
    # Does the hypothesis about a traveller follow, stay open, or clash?
    "mini-inference": {
        "columns": ("premise", "hypothesis"),
        "labels": ("entailment", "neutral", "contradiction"),
        "metrics": ("accuracy",),
    },
    # Does the sentence answer the question about a building?
    "mini-answer": {"columns": ("question", "sentence"), "labels": _ENTAILMENT, "metrics": ("accuracy",)},
    # Does the second sentence about an animal follow from the first?
    "mini-entail": {"columns": _PAIR, "labels": _ENTAILMENT, "metrics": ("accuracy",)},
}
