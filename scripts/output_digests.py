"""Digest everything that ``osrm`` writes and says, so that a change that should change nothing can be seen to.

    python scripts/output_digests.py run --osrm .venv/bin/osrm --glue data --out before.json
    mv /tmp/osrm-digests before
    ... change the code ...
    python scripts/output_digests.py run --osrm .venv/bin/osrm --glue data --out after.json
    python scripts/output_digests.py compare before.json after.json --folders before /tmp/osrm-digests

Both runs need the same ``--work``, since artifacts record paths, and the same machine and versions of the libraries,
since sums depend on them. What a command prints becomes a file like any other, below ``said/``.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

COMMANDS = ("collect", "init", "train", "merge", "calibrate", "retrofit", "eval", "sweep", "diagnose", "report", "demo")
OBJECTIVES = (
    *("osrm", "osrm-in", "gevd", "eva", "loss-aware", "official"),
    *("random-orthonormal", "last-coordinates", "kaiming", "gaussian"),
)
# Methods that need less than their defaults ask for here, or take no scores.
MERGE_OPTIONS = {
    "fisher": "--samples 16",
    "regmean++": "--samples 16",
    "adamerging": "--samples 16 --steps 10",
    "svd": "--rank 4",
    "ties": "--density 0.3 --rank 12",
}
CLASSIFIERS_ONLY = {"adamerging"}

# What differs between two runs of the same code: files that are left out, and files whose numbers count to ten digits.
IGNORED = {"*/private/*.safetensors": "the noise of --private has no seed"}
ROUNDED = {
    "*/retrofitted/*/osrm.json": "what --method projection measures of its result varies in the last digit",
    "said/*-retrofit.json": "likewise",
}

MERGEKIT = """\
merge_method: ties
base_model: sentence-transformers/all-MiniLM-L6-v2
models:
  - {model: sentence-transformers/all-MiniLM-L6-v2+adapters/mini-mood, parameters: {weight: 0.5, density: 0.4}}
  - {model: sentence-transformers/all-MiniLM-L6-v2+adapters/mini-inference, parameters: {weight: 0.5, density: 0.4}}
parameters: {lambda: 0.8, normalize: true}
"""

# Commands of one paragraph do not need each other.
HELP = "\n".join(
    ("--version", "--help", "merge --list", "merge --list --json", *(f"{name} --help" for name in COMMANDS))
)

# Generated tasks, every command and every row of every table; a script would read what they print.
MINI = """
    collect --task mini-mood --task mini-inference --task mini-similarity --samples 24
        --statistic mean --statistic second-moment --statistic samples --statistic sketch:16 --statistic gradient
    collect --task mini-mood --samples 40 --shard 1/2 --out shards
    collect --task mini-mood --samples 40 --shard 2/2 --out shards
    collect --task mini-mood --samples 20 --pooling padded --statistic mean --out padded
    collect --task mini-mood --samples 20 --private 20 --clip 5 --out private
    collect --task mini-mood --dry-run --out dry

    collect --merge-shards --out shards
    {objectives}
    init --exclude mini-mood --rank-budget 96 --out starts/budget
    init --exclude mini-mood --statistic sketch:16 --a-scale match-output --out starts/sketch
    init --each --dry-run --out starts/dry

    train starts/gevd/* --epochs 2 --limit 64 --dev-limit 40 --lr 2e-3 --interference-penalty 3
    train starts/kaiming/* --epochs 1 --limit 64 --dev-limit 40 --lr 2e-3 --head fresh --out plain
    train starts/osrm/mini-mood --epochs 2 --limit 48 --dev-limit 40 --lr 2e-3 --freeze A --dropout 0 --keep-best
        --seed 1 --out frozen
    train starts/budget/mini-mood --epochs 1 --limit 32 --dev-limit 20 --interference-penalty 1 --penalty-unit own
        --out budgeted
    train starts/eva/* --dry-run --out dry

    {methods}
    merge {adapters} --method pico+ties --energy 0.9 --out merged/pico+ties
    merge {adapters} --weight mini-mood=0.5 --weight mini-inference=-1 --lambda 0.4 --out merged/weighted
    merge {adapters} --lambda 0.6 --calibrate --samples 32 --out merged/calibrated
    merge {adapters} --as model --jobs 2 --out models/task-arith
    merge {adapters} --as model --method dare --seed 3 --density 0.5 --dtype bfloat16 --out models/dare
    merge {scored} --as model --method fisher --samples 16 --out models/fisher
    merge frozen/mini-mood plain/mini-inference --method knots-ties --out merged/mixed
    merge --recipe mergekit.yaml --out merged/mergekit
    merge {adapters} --method tsv --dry-run --out dry
    retrofit {adapters} --out retrofitted/balanced
    retrofit {adapters} --method projection --out retrofitted/projection
    retrofit plain/mini-mood --method projection --objective gevd --out retrofitted/gevd

    merge --recipe merged/weighted/merge.yaml --out merged/again
    merge retrofitted/balanced/* --lambda 0.5 --out merged/retrofitted
    calibrate merged/average --samples 32

    eval merged/task-arith --limit 60 --predictions
    eval merged/emr --limit 40
    eval merged/calibrated --limit 40 --no-single
    eval merged/retrofitted --limit 40
    eval calibrated --limit 40 --task mini-mood
    eval models/task-arith --limit 40
    eval adapters/mini-mood --split train --limit 40
    eval merged/ties --dry-run
    sweep {adapters} --method task-arith --method ties --method emr --method regmean --lambda 0.3,0.6,1.0
        --density 0.2,0.5 --limit 40 --calibrate --samples 32 --predictions --out sweeps/gevd
    sweep plain/mini-mood plain/mini-inference plain/mini-similarity --method task-arith --method ties
        --lambda 0.3:0.9:0.3 --limit 40 --predictions --out sweeps/kaiming
    sweep {scored} --method svd --option rank=4,8 --validation-split train --as model --limit 20 --out pair
    sweep {adapters} --dry-run --out dry
    diagnose features --out diagnosis/before
    diagnose features plain/mini-mood plain/mini-similarity --energy 0.9 --out diagnosis/plain

    diagnose features {adapters} --scores merged/task-arith/scores.json --scores pair/sweep.json --out diagnosis/after
    report sweeps --resamples 300
    report merged/emr merged/calibrated merged/retrofitted --resamples 300 --out reports/scores

    report sweeps diagnosis --resamples 300 --seed 1 --baseline gevd --out reports/all
    init --each --objective gevdd --out nowhere
    init --each --out starts/gevd
    train
    train starts/gevd/mini-mood
    merge
    merge {adapters} --method tie --out nowhere
    merge {adapters} --method average --density 0.5 --out nowhere
    merge {adapters} --method emr --as model --out nowhere
    merge --recipe nowhere.yaml
    collect --task mini-food
    collect --merge-shards --out features
    eval nowhere
    eval merged/average --task mini-food
    sweep {adapters} --option nope=1 --out nowhere
    diagnose nowhere
    retrofit {adapters} --method balanced --objective gevd --out nowhere
    calibrate starts/gevd/mini-mood --out nowhere
    report nowhere --out nothing
"""

# Two tasks of GLUE, the pipeline alone; a person would read what it prints.
GLUE = """
    collect --samples 40

    init --each --rank 4
    init --each --objective kaiming --rank 4 --out starts-kaiming

    train starts/sst2 starts/stsb --epochs 1 --limit 150 --dev-limit 60 --interference-penalty 3
    train starts-kaiming/sst2 starts-kaiming/stsb --epochs 1 --limit 100 --dev-limit 60 --out plain

    merge adapters/sst2 adapters/stsb --lambda 0.5
    merge adapters/sst2 adapters/stsb --method regmean --out regmean
    merge adapters/sst2 adapters/stsb --method fisher --samples 16 --as model --out model
    retrofit adapters/sst2 adapters/stsb --mu 0.5

    calibrate merged --samples 48
    eval merged
    eval model
    eval retrofitted/stsb
    sweep adapters/sst2 adapters/stsb --method task-arith --method tsv --lambda 0.4,0.8 --calibrate --samples 48
        --predictions --out sweeps/gevd
    sweep plain/sst2 plain/stsb --method task-arith --method tsv --lambda 0.4,0.8 --predictions --out sweeps/kaiming

    eval calibrated
    diagnose features adapters/sst2 adapters/stsb --scores merged/scores.json
    report sweeps --resamples 300
"""


def main() -> int:
    """Run or compare; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parsers = parser.add_subparsers(required=True)
    runs = parsers.add_parser("run", help="Run every command in a fresh folder and digest what comes of it.")
    runs.add_argument("--osrm", type=Path, required=True, help="The program.")
    runs.add_argument("--glue", type=Path, required=True, help="Folder with {sst2,stsb}/{train,dev}.jsonl.")
    runs.add_argument("--out", type=Path, required=True, help="JSON file to write.")
    runs.add_argument("--work", type=Path, default=Path("/tmp/osrm-digests"), help="Folder to make.")
    runs.add_argument("--jobs", type=int, default=2, help="Commands at a time, each of one thread.")
    runs.set_defaults(call=lambda given: run(given.osrm, given.glue, given.out, given.work, given.jobs))
    compares = parsers.add_parser("compare", help="Say what differs between two runs.")
    compares.add_argument("before", type=Path)
    compares.add_argument("after", type=Path)
    compares.add_argument("--folders", type=Path, nargs=2, metavar=("A", "B"), help="Their work folders, to say where.")
    compares.set_defaults(call=lambda given: compare(given.before, given.after, given.folders))
    given = parser.parse_args()
    return int(given.call(given))


def run(program: Path, glue: Path, out: Path, work: Path, jobs: int) -> int:
    """Run all commands in ``work``, which must not exist, and write their digests to ``out``."""
    run_in, started = partial(_block, program.absolute(), jobs), time.monotonic()
    (work / "mini").mkdir(parents=True)
    (work / "mini/osrm.toml").write_text('data = "mini"\n')
    (work / "mini/mergekit.yaml").write_text(MERGEKIT)
    for name, rows in {"train.jsonl": 300, "dev.jsonl": 100}.items():
        for task in ("sst2", "stsb"):
            _take(glue / task / name, work / "glue/data" / task / name, rows)
    (work / "glue/osrm.toml").write_text('data = "data"\n')
    said = {
        **run_in(work / "mini", "help", HELP),
        **run_in(work / "mini", "mini", _mini(program), "--json"),
        **run_in(work / "glue", "glue", GLUE),
    }
    files = {path.relative_to(work).as_posix(): path for path in sorted(work.rglob("*")) if path.is_file()}
    digests = {name: _sha256(name, path) for name, path in files.items() if not _matches(name, IGNORED)}
    out.write_text(json.dumps({"commands": said, "files": digests}, indent=1) + "\n")
    print(f"{len(said)} commands, {len(digests)} files, {time.monotonic() - started:.0f} s")
    return 0


def compare(before: Path, after: Path, folders: tuple[Path, Path] | None) -> int:
    """Print what differs; with the work folders at hand, also where in the file."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    lines = {name: f"osrm {facts['line']}" for name, facts in {**old["commands"], **new["commands"]}.items()}
    found = [f"command  {lines[name]}" for name in _differing(old["commands"], new["commands"])]
    for name in _differing(old["files"], new["files"]):
        kind = "missing" if name not in new["files"] else "new" if name not in old["files"] else "differs"
        command = lines.get(name.rpartition(".")[0])
        found.append(f"{kind:8} {name}" + (f"   <- {command}" if command else ""))
        if kind == "differs" and folders:
            parts = (_parts(folder / name) for folder in folders)
            found += [f"             {key}" for key in _differing(*parts)]
    print("\n".join(found) or f"{len(new['commands'])} commands and {len(new['files'])} files are the same")
    return 1 if found else 0


def _mini(program: Path) -> str:
    listed = subprocess.run([program, "merge", "--list", "--json"], capture_output=True, check=True)
    scored = "adapters/mini-mood adapters/mini-inference"
    adapters = f"{scored} adapters/mini-similarity"
    methods = "\n".join(
        f"merge {scored if name in CLASSIFIERS_ONLY else adapters} --method {name} --out merged/{name} "
        + MERGE_OPTIONS.get(name, "")
        for name in (row["name"] for row in json.loads(listed.stdout)["methods"])
    )
    objectives = "\n".join(f"init --each --rank 4 --objective {name} --out starts/{name}" for name in OBJECTIVES)
    return MINI.format(objectives=objectives, methods=methods, adapters=adapters, scored=scored)


def _block(program: Path, jobs: int, folder: Path, name: str, text: str, *more: str) -> dict[str, dict[str, Any]]:
    """Run the commands of a text; what they print goes to ``said/`` beside their folder.

    Returns:
        Each command's line and exit code, by the path of what it said without the suffix.
    """
    said = folder.parent / "said" / name
    said.mkdir(parents=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OSRM_", "HF_"))}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    found = {}

    def run_one(line: str, stem: Path) -> None:
        words = [path for word in line.split() for path in _expand(word, folder)]
        started = time.monotonic()
        done = subprocess.run([program, *words], cwd=folder, env=environment, capture_output=True, text=True)
        print(f"{time.monotonic() - started:6.1f} s  {done.returncode}  {name}$ osrm {line}", flush=True)
        Path(f"{stem}.{'json' if '--json' in words else 'out'}").write_text(done.stdout)
        Path(f"{stem}.err").write_text("".join(map(_settled, done.stderr.splitlines(keepends=True))))
        found[stem.relative_to(folder.parent).as_posix()] = {"line": line, "code": done.returncode}

    for number, paragraph in enumerate(_paragraphs(text), 1):
        lines = [" ".join((line, *more)) for line in paragraph]
        stems = [said / f"{number}-{index:02}-{line.split()[0].strip('-')}" for index, line in enumerate(lines)]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(run_one, lines, stems))
    return dict(sorted(found.items()))


def _paragraphs(text: str) -> list[list[str]]:
    """One command a line; what is indented by eight goes on with the line before."""
    joined = re.sub(r"\n {8}", " ", text.strip())
    return [[line.strip() for line in paragraph.splitlines()] for paragraph in joined.split("\n\n")]


def _expand(word: str, folder: Path) -> list[str]:
    if not word.endswith("/*"):
        return [word]
    return sorted(str(path.relative_to(folder)) for path in (folder / word[:-2]).glob("[!.]*"))


def _settled(line: str) -> str:
    """A line of stderr without the clock: progress bars end in a rate."""
    return "" if "━" in line else line


def _take(source: Path, target: Path, rows: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open() as lines:
        target.write_text("".join(islice(lines, rows)))


def _sha256(name: str, path: Path) -> str:
    if _matches(name, ROUNDED):
        text = re.sub(r"\d+\.\d{10,}", lambda number: f"{float(number[0]):.10g}", path.read_text())
        return hashlib.sha256(text.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    missing = object()
    return sorted(name for name in {**old, **new} if old.get(name, missing) != new.get(name, missing))


def _parts(path: Path) -> dict[str, Any]:
    """A file's parts by name: JSON's leaves, tensors with their header, lines of a text."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        parts = {f"metadata.{name}": value for name, value in _leaves(header.pop("__metadata__", {}))}
        for name, entry in header.items():
            first, last = entry.pop("data_offsets")
            parts[name] = (entry, hashlib.sha256(data[start + first : start + last]).hexdigest())
        return parts
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return {"bytes": data}
    try:
        return dict(_leaves(json.loads(text)))
    except ValueError:
        return {f"line {number}": line for number, line in enumerate(text.splitlines(), 1)}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that holds no others, by its path; JSON within a string counts as the JSON it is."""
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    if isinstance(value, dict | list) and value:
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(each, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


if __name__ == "__main__":
    sys.exit(main())
