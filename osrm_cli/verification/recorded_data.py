"""The digests of examples that a record holds, each with what draws the same examples again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.storage.input_files import read_json
from osrm_cli.storage.records import Record
from osrm_cli.tasks.loading import draw_examples, load_split, load_texts
from osrm_cli.tasks.task import Task, TaskSplit


@dataclass(frozen=True)
class RecordedData:
    """Examples that a command has read.

    Attributes:
        name: Source, task and split.
        sha256: Their digest.
        load: Reads them again.
    """

    name: str
    sha256: str
    load: Callable[[], TaskSplit]

    def sha256_now(self) -> str:
        """The digest of the examples as they are now.

        Raises:
            OsrmError: If they cannot be read.
        """
        return self.load().sha256


def recorded_data(record: Record, folder: Path) -> Iterator[RecordedData]:
    """The examples that the command that wrote a record has read itself.

    Args:
        record: The record.
        folder: The artifact's folder, where ``osrm train`` has written ``training.json``.

    Raises:
        OsrmError: If a record is incomplete.
    """
    try:
        yield from _recorded_data_of_command(record, folder)
    except (KeyError, TypeError, AttributeError) as error:
        raise OsrmError(f"the record of its data is incomplete: {error}") from None


def _recorded_data_of_command(record: Record, folder: Path) -> Iterator[RecordedData]:
    command, settings, data = record.get("command"), record.get("settings") or {}, record.get("data") or {}
    task: str = (record.get("task") or {}).get("name", "")
    if command == "collect" and data["sha256"]:
        yield _recorded_draw(task, data, data["split"], settings["samples"], settings["seed"])
    elif command == "train":
        yield _recorded_draw(task, data, "train", settings["limit"], settings["seed"])
        dev = read_json(folder / "training.json", "train the adapter again")["dev"]
        yield _recorded_first_examples(task, data["source"], dev["split"], settings["dev_limit"], dev["sha256"])
    elif command == "merge":
        options = settings["options"]
        for name, row in data.items():
            yield _recorded_draw(name, row, row["split"], options["samples"], options["seed"])
        calibration = record.get("calibration") or {}
        for name, row in calibration.get("tasks", {}).items():
            if own := record["tasks"][name]:
                yield _recorded_text_draw(Task.from_dict(own), row, calibration["settings"]["seed"])
    elif command == "sweep":
        for name, row in data.items():
            for split, digest in row["sha256"].items():
                yield _recorded_first_examples(name, row["source"], split, settings["limit"], digest)


def _check_record_to_verify(texts: Sequence[Any], counts: Sequence[Any]) -> None:
    """Check values of a record that data is read by: a digest, a source and a split; numbers of examples and seeds.

    Raises:
        TypeError: If one is of another type.
    """
    for value in texts:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is not a text")
    for value in counts:
        if not isinstance(value, int) or value < 0:
            raise TypeError(f"{value!r} is not a whole number")


def _recorded_draw(task: str, row: Mapping[str, Any], split: str, samples: int | None, seed: int) -> RecordedData:
    _check_record_to_verify([task, row["source"], split, row["sha256"]], [samples or 0, seed])

    def load() -> TaskSplit:
        whole = load_split(task, row["source"], split)
        return draw_examples(whole, samples, seed) if samples else whole

    return RecordedData(f"{row['source']}/{task}/{split}", row["sha256"], load)


def _recorded_first_examples(task: str, source: str, split: str, limit: int | None, digest: str) -> RecordedData:
    _check_record_to_verify([task, source, split, digest], [limit or 0])
    return RecordedData(f"{source}/{task}/{split}", digest, lambda: load_split(task, source, split, limit))


def _recorded_text_draw(task: Task, row: Mapping[str, Any], seed: int) -> RecordedData:
    _check_record_to_verify([row["source"], row["split"], row["sha256"]], [row["samples"], seed])

    def load() -> TaskSplit:
        return draw_examples(load_texts(task, row["source"], row["split"]), row["samples"], seed)

    return RecordedData(f"{row['source']}/{task.name}/{row['split']} (texts)", row["sha256"], load)
