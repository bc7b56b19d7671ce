"""The rows of rules on entries: of the updates, and of KnOTS's shared basis."""

from dataclasses import replace

from osrm_cli.merging.methods.method import Method

MEAN = "linear:average"  # what papers on matrices do with everything else

ELEMENT_ROWS = (
    Method(
        "ties",
        "trim, elect signs, mean of the entries that agree",
        "elementwise:ties",
        "element",
        options=("density", "aggregate"),
        source="2306.01708",
    ),
    Method(
        "dare",
        "drop entries at random, rescale, add",
        "elementwise:dare",
        "element",
        ("seed",),
        options=("density", "seed"),
        aliases=("dare-linear",),
        source="2311.03099",
    ),
    Method(
        "dare-ties",
        "drop entries at random, rescale, elect signs",
        "elementwise:dare_ties",
        "element",
        ("seed",),
        options=("density", "seed", "aggregate"),
        source="2311.03099",
    ),
    Method(
        "della",
        "drop small entries more often, rescale, elect signs",
        "elementwise:della",
        "element",
        ("seed",),
        options=("density", "seed", "aggregate", "window"),
        source="2406.11617",
    ),
    Method(
        "breadcrumbs",
        "drop the largest and the small entries, add",
        "elementwise:breadcrumbs",
        "element",
        options=("density", "outliers"),
        source="2312.06795",
    ),
    Method(
        "breadcrumbs-ties",
        "drop the largest and the small entries, elect signs",
        "elementwise_mixed:breadcrumbs_ties",
        "element",
        options=("density", "outliers", "aggregate"),
        source="2312.06795",
    ),
    Method(
        "della-linear",
        "drop small entries more often, rescale, add",
        "elementwise_mixed:della_linear",
        "element",
        ("seed",),
        options=("density", "seed", "window"),
        source="2406.11617",
    ),
    Method(
        "sce",
        "select entries that vary, weigh by energy, erase minority signs",
        "elementwise_mixed:sce",
        "element",
        options=("density",),
        source="2408.07990",
    ),
    Method(
        "ram",
        "mean over the tasks that use an entry",
        "elementwise_mixed:ram",
        "element",
        options=("epsilon", "bonus"),
        source="2601.13572",
    ),
    Method(
        "tatr",
        "sum, without the entries where tasks conflict most",
        "elementwise_mixed:tatr",
        "element",
        options=("outliers",),
        aliases=("trust-region",),
        source="2501.15065",
    ),
    Method(
        "magmax",
        "of each entry the largest",
        "elementwise_mixed:magmax",
        "element",
        source="2407.06322",
    ),
    Method(
        "magnitude",
        "drop the small entries, add",
        "elementwise:magnitude",
        "element",
        options=("density",),
        aliases=("magnitude-prune",),
    ),
    Method(
        "consensus",
        "sum, on the entries that at least two tasks use",
        "elementwise:consensus",
        "element",
        options=("mask_scale", "agreement"),
        aliases=("tall",),
        source="2405.07813",
    ),
)
KNOTS_ROWS = tuple(
    replace(
        row,
        name=f"knots-{row.name}",
        summary=f"{row.name} in the basis that the tasks share",
        space="low-rank",
        aliases=("knots",) if row.name == "ties" else (),
        source="2410.19735",
        wrappers=("knots",),
        beyond_layers=MEAN,
    )
    for row in ELEMENT_ROWS
    if row.name in ("ties", "dare-ties")
)
