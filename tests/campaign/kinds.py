"""Every kind of file in the small project, and the commands that read it."""

from collections.abc import Mapping

from tests.campaign.project import ADAPTERS, WRITERS

_RESUME = "train starts/mood --epochs 3 --lr 0.01 --out unfinished --resume"

# By kind: patterns of its files, and the commands that read them. OUT is the output, FILE the damaged file.
KINDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "features": (
        ("features/*.safetensors",),
        (
            "init --each --rank 2 --out OUT",
            "init --each --objective osrm --rank 2 --out OUT",
            "init --exclude mood --objective eva --rank 2 --out OUT",
            "init --each --objective official --rank 2 --out OUT",
            "init --each --objective osrm-in --rank-budget 24 --out OUT",
            "init --each --objective osrm --statistic samples --rank 2 --a-scale match-output --out OUT",
            "diagnose features --out OUT",
            f"diagnose features {ADAPTERS} --out OUT",
            f"merge {ADAPTERS} --method regmean --out OUT",
            f"retrofit {ADAPTERS} --out OUT",
            f"retrofit {ADAPTERS} --method projection --out OUT",
            "train starts/mood --interference-penalty 1 --limit 16 --out OUT",
        ),
    ),
    "features-more": (
        ("features-more/*.safetensors",),
        (
            "init --each --features features-more --rank 2 --out OUT",
            "init --each --features features-more --objective loss-aware --rank 2 --out OUT",
            "diagnose features-more --out OUT",
            f"retrofit {ADAPTERS} --features features-more --out OUT",
        ),
    ),
    "shards": (
        ("shards/*.safetensors",),
        ("init --each --features shards --rank 2 --out OUT", "diagnose shards --out OUT"),
    ),
    "starts": (
        ("starts/*/*",),
        (
            "train starts/mood starts/pair --limit 16 --out OUT",
            "train starts/mood starts/pair starts/score --dry-run --out OUT",
            "merge starts/mood starts/pair starts/score --out OUT",
            "diagnose features starts/mood starts/pair starts/score --out OUT",
        ),
    ),
    "adapters": (
        ("adapters/*/*",),
        (
            f"merge {ADAPTERS} --out OUT",
            f"merge {ADAPTERS} --method ties --rank 2 --out OUT",
            f"merge {ADAPTERS} --method emr --out OUT",
            f"merge {ADAPTERS} --as model --out OUT",
            f"merge {ADAPTERS} --method knots-ties --out OUT",
            f"merge {ADAPTERS} --method regmean++ --samples 8 --out OUT",
            f"merge {ADAPTERS} --method fisher --samples 8 --out OUT",
            f"merge {ADAPTERS} --method sequential --samples 8 --out OUT",
            f"merge {ADAPTERS} --method distill --steps 2 --samples 8 --out OUT",
            f"merge {ADAPTERS} --calibrate --samples 12 --out OUT",
            "eval adapters/mood --out OUT",
            "eval adapters/pair --out OUT",
            f"sweep {ADAPTERS} --lambda 0.5 --out OUT",
            f"diagnose features {ADAPTERS} --out OUT",
            f"retrofit {ADAPTERS} --out OUT",
            "eval merged --out OUT",
            "calibrate merged --samples 12 --out OUT",
            "train adapters/mood --limit 16 --out OUT",
            "convert adapters/mood OUT",
            "convert adapters/pair OUT --dtype float16",
        ),
    ),
    "indexed": (("indexed/mood/*",), ("merge indexed/mood adapters/pair --out OUT",)),
    "foreign": (
        ("foreign/other/*",),
        (
            "merge foreign/other adapters/mood --out OUT",
            "diagnose features foreign/other --task pair=foreign/other --out OUT",
            "retrofit foreign/other --task pair=foreign/other --out OUT",
        ),
    ),
    "rows": (
        ("rows/echo/*", "writer/*.safetensors"),
        (
            "merge rows/echo --out OUT",
            "merge rows/echo --as model --model writer --out OUT",
            "convert rows/echo OUT --model writer",
            "eval rows/echo --model writer --data words --out OUT",
        ),
    ),
    "stacked": (
        ("stacked/*/*", "experts/*"),
        (
            "merge stacked/one stacked/two --out OUT",
            "merge stacked/one stacked/two --as model --model experts --out OUT",
            "merge stacked/one --method ties --as model --model experts --out OUT",
            "convert stacked/one OUT --rank 1",
        ),
    ),
    "converted": (
        ("plain/mood/*",),
        (
            "convert plain/mood OUT --format mlx",
            "convert plain/mood OUT.safetensors --format diffusers --component text_encoder",
            "merge plain/mood adapters/pair --out OUT",
        ),
    ),
    "converted-file": (("plain/*.safetensors",), ("convert FILE OUT",)),
    "converted-mlx": (("plain/mlx/*",), ("convert plain/mlx OUT",)),
    "merged": (
        ("merged/*", "merged/tasks/*/*"),
        (
            "eval merged --out OUT",
            "eval merged --no-single --out OUT",
            "calibrate merged --samples 12 --out OUT",
            "merge --recipe merged/merge.yaml --out OUT",
            "report merged --out OUT",
        ),
    ),
    "emr": (
        ("merged-emr/*", "merged-emr/tasks/*/*"),
        ("eval merged-emr --out OUT", "calibrate merged-emr --samples 12 --out OUT"),
    ),
    "model": (
        ("merged-model/*", "merged-model/tasks/*/*"),
        (
            "eval merged-model --no-single --out OUT",
            "calibrate merged-model --samples 12 --out OUT",
            "extract base merged-model --rank 2 --out OUT",
        ),
    ),
    "calibrated": (("calibrated/*.json", "calibrated/tasks/*/*"), ("eval calibrated --out OUT",)),
    "scores": (
        ("merged*/scores.json",),
        (
            "report merged merged-emr merged-model --out OUT",
            f"diagnose features {ADAPTERS} --scores merged/scores.json --out OUT",
            "report merged merged-emr --baseline osrm --out OUT",
        ),
    ),
    "sweep": (
        ("sweep/sweep.json",),
        ("report sweep --out OUT", f"diagnose features {ADAPTERS} --scores sweep/sweep.json --out OUT"),
    ),
    "diagnosis": (("diagnosis/diagnosis.json",), ("report merged diagnosis --out OUT",)),
    "recipe": (
        ("recipes/ours.yaml", "merged-ties/merge.yaml", "recipes/mergekit.yaml"),
        ("merge --recipe FILE --out OUT",),
    ),
    "osrm.toml": (
        ("osrm.toml",),
        (
            "merge adapters/mood adapters/pair --out OUT",
            "train starts/mood --limit 16 --out OUT",
            "collect --task mood --samples 8 --out OUT",
            "init --each --rank 2 --out OUT",
        ),
    ),
    "task.toml": (
        ("data/mood/task.toml",),
        (
            "collect --task mood --samples 8 --out OUT",
            "eval adapters/mood --out OUT",
            "train starts/mood --limit 16 --out OUT",
        ),
    ),
    "data": (
        ("data/mood/*.jsonl", "data/pair/*.csv", "data/score/*.gz"),
        (
            "collect --task mood --task pair --task score --samples 48 --out OUT",
            "train starts/mood --out OUT",
            "train starts/pair --out OUT",
            "train starts/score --out OUT",
            "eval adapters/mood --out OUT",
            "eval merged --no-single --out OUT",
            "calibrate merged --samples 48 --out OUT",
            f"merge {ADAPTERS} --method fisher --samples 48 --out OUT",
        ),
    ),
    "tables": (
        ("data/parq/train.parquet", "data/parz/train.parquet.gz", "data/tabs/train.tsv", "data/arr/train.json"),
        ("collect --task TASK --samples 48 --out OUT",),
    ),
    "base": (
        ("base/*",),
        (
            "collect --task mood --samples 8 --out OUT",
            "eval adapters/mood --out OUT",
            f"merge {ADAPTERS} --as model --out OUT",
            "train starts/mood --limit 16 --out OUT",
            f"diagnose features {ADAPTERS} --out OUT",
            "eval merged --no-single --out OUT",
        ),
    ),
    "base-sharded": (
        ("base-sharded/*",),
        (
            "collect --task mood --samples 8 --model base-sharded --out OUT",
            "merge foreign/other --as model --model base-sharded --out OUT",
        ),
    ),
    "unfinished": (("unfinished/.mood.training/osrm.json", "unfinished/.mood.training/checkpoint-*/*"), (_RESUME,)),
    "writers": (
        ("writers/*/*", "writer/*", "writers-merged/*"),
        (
            f"merge {WRITERS} --out OUT",
            f"merge {WRITERS} --model writer --data words --method matched-weights --samples 8 --out OUT",
            f"merge {WRITERS} --model writer --as model --out OUT",
            "eval writers/echo --model writer --data words --out OUT",
            "eval writers-merged --model writer --data words --no-generate --base --out OUT",
            f"sweep {WRITERS} --model writer --data words --lambda 0.5 --out OUT",
            "train writers-starts/echo --model writer --data words --limit 16 --out OUT",
            "collect --task echo --model writer --data words --samples 8 --out OUT",
        ),
    ),
    "words": (
        ("words/*/*",),
        (
            "collect --task TASK --model writer --data words --samples 24 --out OUT",
            "train writers-starts/TASK --model writer --data words --out OUT",
            "eval writers/TASK --model writer --data words --out OUT",
        ),
    ),
    "verify": (
        ("adapters/*/*", "merged/*", "merged/tasks/*/*", "features/*", "starts/*/*", "sweep/*", "data/mood/*"),
        ("verify merged sweep diagnosis",),
    ),
}
