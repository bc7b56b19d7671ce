"""The rows. Adding a method is one row here and one function in the file of its family."""

from dataclasses import replace

from osrm_cli.merging.methods.element_table import ELEMENT_ROWS, KNOTS_ROWS, MEAN
from osrm_cli.merging.methods.method import Method

_LINEAR = (
    Method(
        "task-arith",
        "weighted sum of the updates",
        "linear:task_arith",
        aliases=("task-arithmetic", "ta", "sum"),
        source="2212.04089",
    ),
    Method("average", "weighted mean of the updates", "linear:average", aliases=("linear",), source="2203.05482"),
    Method("cat", "weighted sum, always stored as stacked factors", "linear:task_arith", takes_full_models=False),
    Method(
        "model-stock",
        "mean, drawn to the base model as far as the updates disagree",
        "averages:model_stock",
        source="2403.19522",
    ),
    Method("karcher", "mean direction on the sphere, at the mean length", "averages:karcher", aliases=("slerp",)),
    Method("multislerp", "direction of the sum of unit updates, at the mean length", "averages:multislerp"),
    Method(
        "svd",
        "best approximation of the weighted sum at a rank",
        "linear:svd",
        options=("rank", "energy"),
        beyond_layers="linear:task_arith",
    ),
)
_SPECTRAL = (
    Method(
        "tsv",
        "singular vectors of the tasks, whitened against each other",
        "spectral:tsv",
        aliases=("tsv-m", "tsvm"),
        source="2412.00081",
        beyond_layers=MEAN,
    ),
    Method("iso-c", "sum with a flat spectrum", "spectral:iso_c", source="2502.04959", beyond_layers=MEAN),
    Method(
        "iso-cts",
        "common and task-specific directions with a flat spectrum",
        "spectral:iso_cts",
        options=("common",),
        source="2502.04959",
        beyond_layers=MEAN,
    ),
    Method(
        "pico",
        "scale down what the Bs share, add; before another rule: pico+RULE",
        "linear:task_arith",
        source="2604.16826",
        wrappers=("pico",),
        takes_full_models=False,
    ),
    Method(
        "svc",
        "sum, each singular value divided by how often it counts",
        "spectral:svc",
        options=("floor",),
        source="2602.05536",
        beyond_layers=MEAN,
    ),
)
_REGRESSION = (
    Method(
        "cat-merging",
        "sum, without what the other tasks' inputs see most of each update",
        "conflicts:cat_merging",
        needs=("features",),
        options=("trim", "penalty"),
        source="2505.06977",
        takes_full_models=False,
    ),
    Method(
        "doge-ta",
        "norms made equal, a shared correction against conflicts, trimmed, added",
        "conflicts:doge_ta",
        "element",
        options=("density",),
        aliases=("doge",),
        source="2501.01230",
        takes_full_models=False,
    ),
    Method(
        "wudi",
        "least interference on the updates' own rows",
        "regression:wudi",
        source="2503.08099",
        beyond_layers=MEAN,
    ),
    Method(
        "regmean",
        "least squares on the tasks' features",
        "regression:regmean",
        needs=("features",),
        options=("alpha",),
        source="2212.09849",
        beyond_layers=MEAN,
    ),
    Method(
        "regmean++",
        "regmean with features of the layers merged so far",
        "regression:regmean",
        needs=("data",),
        options=("alpha",),
        aliases=("regmean-plus-plus",),
        source="2508.03121",
        data_statistic="second-moments",
        takes_full_models=False,
    ),
    Method(
        "lot",
        "least squares on the single models' features, without a ridge",
        "regression:lot",
        needs=("data",),
        source="2505.23859",
        data_statistic="single-moments",
        takes_full_models=False,
    ),
    Method(
        "sequential",
        "least squares, layer by layer, on what the single models' layers put out",
        "regression:sequential",
        "element",
        ("data",),
        options=("ridge",),
        data_statistic="cross-moments",
        takes_full_models=False,
    ),
    Method(
        "fisher",
        "mean weighted by each entry's Fisher information",
        "elementwise:fisher",
        "element",
        ("labels",),
        source="2111.09832",
        data_statistic="fisher",
    ),
    Method(
        "adamerging",
        "weighted sum, weights of least entropy per layer; classification only",
        "linear:task_arith",
        needs=("data",),
        default_lambda=0.3,
        source="2310.02575",
        data_statistic="weights",
        takes_full_models=False,
    ),
)
_LEARNED = (
    Method(
        "frank-wolfe",
        "weighted mean, weights per layer by Frank-Wolfe steps on the tasks' losses",
        "linear:task_arith",
        needs=("labels",),
        aliases=("fw-merging",),
        source="2503.12649",
        data_statistic="simplex-weights",
        takes_full_models=False,
    ),
    Method(
        "matched-weights",
        "weighted sum, weights per layer that bring it nearest to the single models",
        "linear:task_arith",
        needs=("data",),
        default_lambda=0.3,
        data_statistic="matching-weights",
        takes_full_models=False,
    ),
    Method(
        "distill",
        "another method's result, trained to do as the single models do",
        "factors:distill",
        needs=("data",),
        source="2402.02705",
        data_statistic="factors",
        takes_full_models=False,
    ),
)
_FACTORS = (
    Method(
        "robust-merge",
        "factors added apart, trimmed, their ranks scaled by what A has lost",
        "factors:robust_merge",
        options=("density",),
        source="2502.17159",
        takes_full_models=False,
    ),
    Method(
        "lora-lego",
        "single ranks clustered, the clusters' means put together",
        "factors:lora_lego",
        options=("rank",),
        source="2409.16167",
        takes_full_models=False,
    ),
)
_PAIRS = (
    Method(
        "nearswap",
        "one of two updates, moved a little towards the other",
        "elementwise_mixed:nearswap",
        "element",
        options=("reach", "primary"),
    ),
)
_CORE = tuple(
    replace(
        row,
        name=f"core-{row.name}",
        summary=f"{row.name} on the small cores of the updates",
        space="low-rank",
        aliases=(),
        source="2509.17786",
        wrappers=("core",),
        takes_full_models=False,
    )
    for row in (_LINEAR[0], *ELEMENT_ROWS)
)
_TASK_AWARE = (
    Method(
        "emr",
        "one update, a mask and a factor per task; needs the task's name at inference",
        "elementwise:emr",
        "element",
        aliases=("emr-merging",),
        source="2405.17461",
        is_task_aware=True,
        takes_full_models=False,
    ),
)

METHODS: tuple[Method, ...] = (
    *_LINEAR,
    *ELEMENT_ROWS,
    *_PAIRS,
    *_CORE,
    *KNOTS_ROWS,
    *_SPECTRAL,
    *_FACTORS,
    *_REGRESSION,
    *_LEARNED,
    *_TASK_AWARE,
)
