"""From features files to what is known of each layer's inputs: second moments, or the rows that stand for them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.features.features_file import FeaturesFile
from osrm_cli.linalg.second_moment import SecondMoment

# What numbers made from a statistic speak of; the best one first.
READINGS = {
    "second-moment": "all tokens",
    "sketch": "all tokens but for what the sketch leaves out",
    "samples": "the examples' mean tokens, not single tokens",
    "mean": "the tasks' mean tokens alone: one direction each, no spread",
}
ALL = tuple(READINGS)


@dataclass(frozen=True)
class FeatureSet:
    """Features files, and the statistic that is read of each.

    Attributes:
        files: By task.
        kind: Which of ``READINGS``.
        statistics: The statistic's name in each task's file.
    """

    files: Mapping[str, FeaturesFile]
    kind: str
    statistics: Mapping[str, str]

    @classmethod
    def of(cls, files: Mapping[str, FeaturesFile], kinds: tuple[str, ...] = ALL, what: str = "this") -> "FeatureSet":
        """Choose the best statistic that every file holds.

        Args:
            files: By task.
            kinds: Those that serve, the best one first.
            what: Named in the error.

        Raises:
            OsrmError: If the files have none of them in common.
        """
        for kind in kinds:
            held = {
                task: name
                for task, features in files.items()
                for name in features.statistics
                if name.partition(":")[0] == kind
            }
            if len(held) == len(files):
                return cls(files, kind, held)
        lacking = next((f for f in files.values() if not {n.partition(":")[0] for n in f.statistics} & {*kinds}), None)
        odd = lacking or next(iter(files.values()))
        raise OsrmError(
            f"{what} needs {' or '.join(kinds)} of every task, {odd.path} holds {', '.join(odd.statistics)}",
            f"osrm collect {' '.join(f'--task {task}' for task in files)} --statistic {kinds[0]} --overwrite",
        )

    def warnings(self) -> list[str]:
        """Reasons to doubt what the features say, one line each."""
        widest = max(layer.d_in for features in self.files.values() for layer in features.layers.values())
        doubts = []
        if self.kind in ("samples", "mean"):
            doubts.append(f"read from {self.kind}, so the numbers speak of {READINGS[self.kind]}")
        if self.kind == "second-moment":
            doubts += [
                f"{features.path}: {features.tokens} tokens for inputs of width {widest}: k is too small to tell "
                "directions that the task does not use from directions that were not seen"
                for features in self.files.values()
                if features.tokens < widest
            ]
        return doubts

    def groups(self) -> list[list[str]]:
        """Layers, those that are fed by the same tensor together."""
        files = list(self.files.values())
        return group_layers_by_input(files[0].layers, files)

    def read(self) -> Iterator[tuple[list[str], dict[str, SecondMoment]]]:
        """Yield each group of layers with every task's inputs; memory holds one group at a time."""
        readers = {task: features.reader() for task, features in self.files.items()}
        for group in self.groups():
            tensors = {task: reader.read(group[0], self.statistics[task]) for task, reader in readers.items()}
            yield group, {task: self._second_moment(tensor, task) for task, tensor in tensors.items()}

    def _second_moment(self, tensor: torch.Tensor, task: str) -> SecondMoment:
        if self.kind == "second-moment":
            return SecondMoment(tensor, factored=False)
        rows = tensor.reshape(-1, tensor.shape[-1])
        # A sketch stands for the sum over all tokens, the others are means as they are.
        count = self.files[task].tokens if self.kind == "sketch" else len(rows)
        return SecondMoment(rows / max(count, 1) ** 0.5, factored=True)


def group_layers_by_input(layers: Mapping[str, object], files: Sequence[FeaturesFile]) -> list[list[str]]:
    """Layers grouped by the entries that they read."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in layers:
        groups.setdefault(tuple(file.layers[name].source for file in files) or (name,), []).append(name)
    return list(groups.values())
