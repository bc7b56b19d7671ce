"""One adapter to train: its start, data, base model and features, checked before anything is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.config import TEXT_TASK_TYPES
from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.adapters.task_data import DEFAULT_DATA, resolve_max_length
from osrm_cli.errors import OsrmError
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.models.backbone import check_max_length
from osrm_cli.models.base_model import resolve_base_model
from osrm_cli.storage import atomic, provenance
from osrm_cli.storage.records import BaseModelId
from osrm_cli.tasks.loading import choose_task_source, draw_examples, load_split
from osrm_cli.tasks.task import TaskSplit
from osrm_cli.training.fit import TrainingConfig
from osrm_cli.training.interference_penalty import default_penalty_weight, open_penalty_features


@dataclass(frozen=True)
class TrainingRun:
    """One adapter to train, with its inputs checked.

    Attributes:
        origin: The initialized adapter's folder, as the user gave it.
        start: The initialized adapter.
        source: The data, as ``--data`` names it.
        train: Training examples.
        dev: Dev examples.
        base_dir: The base model's folder.
        base: The base model.
        config: Hyperparameters.
        settings: All settings, as in ``osrm.json``.
        path: The output folder.
        features: The features that the penalty and the projection read.
        warnings: Of what it is trained without.
    """

    origin: Path
    start: Adapter
    source: str
    train: TaskSplit
    dev: TaskSplit
    base_dir: Path
    base: BaseModelId
    config: TrainingConfig
    settings: dict[str, Any]
    path: Path
    features: FeatureSet | None
    warnings: Sequence[str]

    @property
    def checkpoint_folder(self) -> Path:
        """Folder of the checkpoints until the run is finished."""
        return self.path.parent / f".{self.path.name}.training"

    def make_record(self) -> dict[str, Any]:
        """The run's ``osrm.json``."""
        return provenance.make_artifact_record(
            "train",
            self.settings,
            [self.start.folder, *(self.features.paths if self.features else [])],
            base=self.base,
            task=self.train.task.to_dict(),
            data={"source": self.source, "sha256": self.train.sha256},
            start=self.start.record.get("settings"),
        )


@dataclass(frozen=True)
class TrainingRequest:
    """What the adapters that one command trains have in common.

    Attributes:
        out: Folder to write ``<task>/`` to.
        overwrite: Replace adapters that exist.
        data: The value of ``--data``.
        model: The base model, if it has moved.
        revision: Its revision.
        features: Folder of features files for the penalty and the projection.
        config: Hyperparameters.
        settings: The settings, as in ``osrm.json``, but for the penalty's and the final ``max_length``.
        penalty: Weight of the interference penalty; ``None`` for the default of each start.
        penalty_unit: Reference energy of the penalty.
    """

    out: Path
    overwrite: bool
    data: str | None
    model: str | None
    revision: str | None
    features: Path
    config: TrainingConfig
    settings: Mapping[str, Any]
    penalty: float | None
    penalty_unit: str

    def prepare(self, origin: Path) -> TrainingRun:
        """Check the inputs of one adapter.

        Args:
            origin: The initialized adapter's folder.

        Raises:
            OsrmError: If one is missing or does not fit, or the output exists.
        """
        start = open_adapter(origin)
        path = self.out / Path(start.name).name
        atomic.refuse_existing(path, self.overwrite)
        source = choose_task_source(start.name, start.data_source, self.data, origin) or DEFAULT_DATA
        train = load_split(start.name, source, "train")
        if self.settings["limit"]:
            train = draw_examples(train, self.settings["limit"], self.config.seed)
        dev = load_split(start.name, source, "dev", self.settings["dev_limit"])
        if (start.config.task_type in TEXT_TASK_TYPES) != train.task.is_text and start.config.task_type:
            answer = "is answered with text" if train.task.is_text else "has labels"
            raise OsrmError(
                f"{origin} was initialized for {start.config.task_type}, but task '{start.name}' {answer}",
                "collect the task's features and initialize it again",
            )
        if "quantize" in self.settings and not train.task.is_text:
            raise OsrmError(f"{origin}: --quantize is for tasks that are answered with text", "leave it out")
        base_dir, base = resolve_base_model(origin, start.base, start.config.base_model, self.model, self.revision)
        length = resolve_max_length(self.settings["max_length"], train.task)
        check_max_length(base_dir, length)
        penalty, features, warnings = self._open_penalty(origin, start, base)
        settings = {**self.settings, "max_length": length, **penalty}
        return TrainingRun(
            origin, start, source, train, dev, base_dir, base, self.config, settings, path, features, warnings
        )

    def _open_penalty(
        self, origin: Path, start: Adapter, base: BaseModelId
    ) -> tuple[dict[str, Any], FeatureSet | None, list[str]]:
        """The penalty's settings, the features that are read, and warnings: the default penalty can be done without."""
        weight = default_penalty_weight(start) if self.penalty is None else self.penalty
        if not weight and "project_energy" not in self.settings:
            return {}, None, []
        try:
            features = open_penalty_features(self.features, start, base, self.penalty_unit)
        except OsrmError as error:
            if self.penalty is not None:
                raise
            advice = "give the features with --features, or --interference-penalty 0"
            return {}, None, [f"{origin} is trained without the interference penalty: {error}; {advice}"]
        settings = {"interference_penalty": weight, "penalty_unit": self.penalty_unit} if weight else {}
        return settings, features, []
