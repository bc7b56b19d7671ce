"""Options of the merging methods, with their defaults and ranges. No torch in this file."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)

_SHARE = "a share above 0, at most 1"
_START = "'task-arith', 'tsv', 'ties' or 'sequential'"
_LAYERS = "a list of layers' names, or [all-linear]"
_COUNT = "a whole number from 1 to 1,000,000,000"

Scale = Annotated[float, Field(description="a finite number")]
Share = Annotated[float, Field(gt=0, le=1, description=_SHARE)]
ShareOrZero = Annotated[float, Field(ge=0, le=1, description="a share from 0 to 1")]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1, description="a share from 0, below 1")]
NotNegative = Annotated[float, Field(ge=0, description="a number that is not negative")]
Count = Annotated[int, Field(ge=1, le=10**9, description=_COUNT)]
Copies = Annotated[int, Field(ge=0, le=1000, description="a whole number from 0 to 1,000")]
Steps = Annotated[int, Field(ge=1, le=10**6, description="a whole number from 1 to 1,000,000")]
Rate = Annotated[float, Field(gt=0, description="a number above 0")]
Seed = Annotated[int, Field(ge=0, lt=2**64, description="a whole number from 0, below 2 ** 64")]


@dataclass(frozen=True, config=_STRICT)
class MethodOptions:
    """What a user may set; each row of the table names the options that its rule reads.

    Attributes:
        scale: lambda, one factor on the whole result.
        density: Share of the entries to keep, in ``(0, 1]``.
        seed: Seed of the random masks.
        rank: Rank of ``svd``; without ``rank`` and ``energy``, the largest rank among the inputs.
        energy: Share of the energy that ``svd`` keeps.
        aggregate: Whether sign-electing rules take the mean or the sum of the entries that agree.
        window: DELLA: how far the drop probability varies with magnitude, its largest value minus its smallest.
        outliers: Breadcrumbs: share of the largest entries to drop; TATR: of those that conflict most.
        mask_scale: Consensus: an entry belongs to a task if ``|dW_t| >= mask_scale * |sum - dW_t|``.
        agreement: Consensus: number of tasks that must use an entry.
        common: Iso-CTS: share of the directions that the common part takes.
        floor: SVC: smallest divisor of a singular value; 1 never raises one.
        alpha: RegMean: factor on the off-diagonal entries of the second moments, in ``[0, 1]``.
        ridge: Sequential: pull towards the tasks' mean update, in units of the mean squared input.
        trim: CAT Merging: output directions taken out for each task.
        penalty: CAT Merging: weight of what an update loses on its own task's inputs.
        epsilon: RAM: a task uses the entries whose magnitude is above this.
        bonus: RAM+: how much a task's own entries grow with its share of shared ones; 0 is RAM.
        reach: Nearswap: how far an entry moves at most.
        primary: Nearswap: the adapter that is moved; without it, the first by name.
    """

    scale: Scale = 1.0
    density: Share = 0.2
    seed: Seed = 0
    rank: Annotated[Count | None, Field(description=_COUNT)] = None
    energy: Annotated[Share | None, Field(description=_SHARE)] = None
    aggregate: Annotated[Literal["mean", "sum"], Field(description="'mean' or 'sum'")] = "mean"
    window: ShareBelowOne = 0.1
    outliers: ShareBelowOne = 0.01
    mask_scale: NotNegative = 0.4
    agreement: Count = 2
    common: Share = 0.8
    floor: NotNegative = 1.0
    alpha: ShareOrZero = 0.9
    ridge: NotNegative = 0.01
    trim: Count = 2
    penalty: NotNegative = 1.0
    epsilon: NotNegative = 1e-5
    bonus: NotNegative = 0.0
    reach: NotNegative = 1e-3
    primary: Annotated[str | None, Field(description="the name of an adapter")] = None


@dataclass(frozen=True, config=_STRICT)
class DataOptions:
    """What the methods take that compute a statistic of data.

    Attributes:
        samples: Examples read of each task.
        seed: Decides which.
        steps: Steps of learning, at most: Distill and matched weights take a batch of each task in one.
        lr: Learning rate of distill and matched weights at its highest.
        mixed_texts: Distill: further texts for each text of a classifier, put together from parts of two; 0 for none.
        start: Distill: the method whose result is the beginning.
        target_modules: Distill: further layers to learn, as PEFT names them, or ``all-linear``.
        completions: Of tasks that are answered with text: ``own``, which the single adapter writes, or the ``given``.
    """

    samples: Count = 100
    seed: Seed = 0
    steps: Steps = 300
    lr: Rate = 2.5e-4
    mixed_texts: Copies = 7
    start: Annotated[Literal["task-arith", "tsv", "ties", "sequential"], Field(description=_START)] = "tsv"
    target_modules: Annotated[list[str] | None, Field(min_length=1, description=_LAYERS)] = None
    completions: Annotated[Literal["own", "given"], Field(description="'own' or 'given'")] = "own"
