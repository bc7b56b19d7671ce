"""An adapter in the file of any format: its settings, and where its factors lie, by the names that PEFT gives them."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.config import AdapterConfig
from osrm_cli.errors import OsrmError
from osrm_cli.storage.input_files import TensorLocation

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class AdapterContents:
    """What an adapter's files hold.

    Attributes:
        config: The settings, in PEFT's terms.
        tensors: Location of each tensor by PEFT's name for it, perhaps with a wrapper's additions.
    """

    config: AdapterConfig
    tensors: dict[str, TensorLocation]


@dataclass(frozen=True)
class AdapterOutput:
    """What is to be written.

    Attributes:
        adapter: The adapter; its tensors are read one by one.
        dtype: Type of the factors in the file.
        may_round: Whether the user has asked for that type, so that entries may be rounded to it.
        component: The part of a pipeline that the adapter belongs to, if the user says so.
        metadata: Texts by key that go on with the weights.
    """

    adapter: Adapter
    dtype: torch.dtype
    may_round: bool
    component: str | None
    metadata: Mapping[str, str]


class FormatModule(Protocol):
    """What the module of a format offers."""

    def matches(self, path: Path) -> bool:
        """Whether a file or folder is of this format, from its files and the names of its tensors."""

    def read(self, path: Path) -> AdapterContents:
        """Read the settings and the headers.

        Raises:
            OsrmError: If it is damaged, or holds more than LoRA's two factors.
        """

    def write(self, path: Path, output: AdapterOutput) -> None:
        """Write an adapter to a path that is being staged.

        Raises:
            OsrmError: If the format cannot hold it as it is.
        """


def read_alpha(file: Any, name: str, path: Path) -> float:
    """The number in a tensor of an open file: the numerator of a layer's scaling.

    Raises:
        OsrmError: If it is NaN or infinite.
    """
    alpha = float(file.get_tensor(name))
    if not math.isfinite(alpha):
        raise OsrmError(f"{path}: {name} is {alpha}, expected a finite number", "save the file again")
    return alpha


def make_adapter_config(ranks: Mapping[str, int], alphas: Mapping[str, float]) -> AdapterConfig:
    """PEFT's settings for layers of these ranks and numerators of the scaling ``alpha / rank``.

    Args:
        ranks: By layer.
        alphas: By layer.
    """
    rank, alpha = _most_common_lora_setting(ranks.values()), _as_peft_number(_most_common_lora_setting(alphas.values()))
    return AdapterConfig(
        base_model=None,
        r=rank,
        lora_alpha=alpha,
        rank_pattern={exact_layer_pattern(layer): value for layer, value in ranks.items() if value != rank},
        alpha_pattern={
            exact_layer_pattern(layer): _as_peft_number(value) for layer, value in alphas.items() if value != alpha
        },
        target_modules=tuple(sorted(ranks)),
    )


def exact_layer_pattern(layer: str) -> str:
    """The regular expression by which PEFT's settings name one layer alone."""
    return f"^{re.escape(layer)}"


def _most_common_lora_setting(values: Iterable[_Number]) -> _Number:
    return max(Counter(values).items(), key=lambda pair: (pair[1], pair[0]))[0]


def _as_peft_number(value: float) -> float:
    """Whole numbers without a decimal point, as PEFT writes them."""
    return int(value) if float(value).is_integer() else value
