"""The tasks that take part in a sweep: adapter, examples, and what calibrates the head."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from osrm_cli.adapters import task_data
from osrm_cli.adapters.adapter import Adapter
from osrm_cli.errors import OsrmError
from osrm_cli.tasks.task import Example
from osrm_cli.tasks.validation_split import ValidationSplit, load_validation_split


@dataclass(frozen=True)
class Entrant:
    """One task that takes part.

    Attributes:
        index: Place of its adapter among all that are merged.
        adapter: Its adapter, with the head.
        source: Its data as ``--data`` names them.
        parts: Its examples.
        max_length: Tokens that an example is cut to.
        unlabelled: Training examples without their labels, which calibrate the head if it is to be.
    """

    index: int
    adapter: Adapter
    source: str
    parts: ValidationSplit
    max_length: int
    unlabelled: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What is read of every task.

    Attributes:
        data: Data as ``--data`` names them; ``None`` for what each adapter was trained on.
        split: What reports.
        validation_split: What chooses; ``None`` for a half of ``split``.
        limit: Read no more than the first so many examples of a split.
        max_length: Tokens to keep; ``None`` for what each adapter was trained with.
        unlabelled: Number of training examples that calibrate a head; 0 for no calibration.
        seed: Of the halves, and of the draw of training examples.
    """

    data: str | None
    split: str
    validation_split: str | None
    limit: int | None
    max_length: int | None
    unlabelled: int
    seed: int

    def enter(self, adapters: Sequence[Adapter], names: Sequence[str]) -> list[Entrant]:
        """Read what is wanted of the tasks ``names``, or of all adapters' where there are none.

        Raises:
            OsrmError: If no adapter has such a name, or its data cannot be read.
        """
        known = [adapter.name for adapter in adapters]
        for name in names:
            if name not in known:
                raise OsrmError(f"no adapter is of task '{name}'", f"there are: {', '.join(known)}")
        chosen = [index for index, name in enumerate(known) if not names or name in names]
        entrants = [self._entrant(index, adapters[index]) for index in chosen]
        if not self.unlabelled:
            return entrants
        drawn = task_data.unlabelled([adapters[index] for index in chosen], self.data, self.unlabelled, self.seed)
        pairs = zip(entrants, drawn, strict=True)
        return [replace(entrant, unlabelled=sample.data.examples) for entrant, sample in pairs]

    def _entrant(self, index: int, adapter: Adapter) -> Entrant:
        name = adapter.name
        source = self.data or (adapter.facts.get("data") or {}).get("source") or "hub"
        read = load_validation_split(name, source, self.split, self.validation_split, self.limit, self.seed)
        trained = (adapter.facts.get("settings") or {}).get("max_length")
        length = self.max_length or trained or read.task.max_length or task_data.MAX_LENGTH
        return Entrant(index, adapter, source, read, length)
