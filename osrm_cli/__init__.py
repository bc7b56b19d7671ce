"""Make LoRA adapters mergeable: the functions behind the commands, imported when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from osrm_cli.version import __version__ as __version__

if TYPE_CHECKING:
    from osrm_cli.calibration.calibrate import calibrate_folder, prepare_calibration
    from osrm_cli.conversion.convert import convert_adapter
    from osrm_cli.diagnosis.diagnose import diagnose
    from osrm_cli.errors import OsrmError
    from osrm_cli.evaluation.evaluate import evaluate_folder
    from osrm_cli.extraction.extract import extract_adapter
    from osrm_cli.features.collect import collect_features
    from osrm_cli.features.merge_shards import merge_shards
    from osrm_cli.initialization.initialize import initialize_adapters
    from osrm_cli.merging.merge import merge_adapters
    from osrm_cli.reporting.write import write_report, write_report_table
    from osrm_cli.retrofit.retrofit import retrofit_adapters
    from osrm_cli.sweep.sweep import run_sweep
    from osrm_cli.training.train import train_adapter, train_adapters
    from osrm_cli.verification.verify import verify_artifacts

# In the order of the work. torch is imported with the first of them, not with the package.
_MODULES = {
    "collect_features": "features.collect",
    "merge_shards": "features.merge_shards",
    "initialize_adapters": "initialization.initialize",
    "train_adapter": "training.train",
    "train_adapters": "training.train",
    "merge_adapters": "merging.merge",
    "extract_adapter": "extraction.extract",
    "convert_adapter": "conversion.convert",
    "evaluate_folder": "evaluation.evaluate",
    "run_sweep": "sweep.sweep",
    "calibrate_folder": "calibration.calibrate",
    "prepare_calibration": "calibration.calibrate",
    "retrofit_adapters": "retrofit.retrofit",
    "diagnose": "diagnosis.diagnose",
    "write_report": "reporting.write",
    "write_report_table": "reporting.write",
    "verify_artifacts": "verification.verify",
    "OsrmError": "errors",
}

__all__ = [
    "OsrmError",
    "calibrate_folder",
    "collect_features",
    "convert_adapter",
    "diagnose",
    "evaluate_folder",
    "extract_adapter",
    "initialize_adapters",
    "merge_adapters",
    "merge_shards",
    "prepare_calibration",
    "retrofit_adapters",
    "run_sweep",
    "train_adapter",
    "train_adapters",
    "verify_artifacts",
    "write_report",
    "write_report_table",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
