"""The generated text tasks: files, rows, and that each completion is right for its prompt."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from osrm_cli.tasks.mini_text import MINI_TEXT, MINI_TEXT_FOLDER
from scripts.generate_mini_tasks import HELD_OUT
from scripts.generate_mini_text import COUNTS, PEOPLE, SIZES, THINGS, VERBS
from tests.run_cli import ROOT

DATA = {
    (name, split): [json.loads(line) for line in (MINI_TEXT_FOLDER / name / f"{split}.jsonl").read_text().splitlines()]
    for name in MINI_TEXT
    for split in SIZES
}
CUES = {"mini-json": "JSON", "mini-denial": "Denial", "mini-steps": "Sum", "mini-sql": "SQL"}
TASKS = pytest.mark.parametrize("name", MINI_TEXT)
EVENT = re.compile(
    r"(?:On (?P<early>\w+), )?(?P<who>\w+) (?P<verb>\w+) (?P<count>\w+) (?P<item>\w+)s(?: on (?P<late>\w+))?\."
)


def rows(name: str) -> list[tuple[str, str]]:
    """Sentence and completion of every row; each prompt is a cue, a sentence and a line break."""
    found = []
    for split in SIZES:
        for row in DATA[name, split]:
            cue, _, sentence = row["prompt"].partition(": ")
            assert cue == CUES[name]
            assert sentence.endswith("\n")
            found.append((sentence.removesuffix("\n"), row["completion"]))
    return found


def test_the_files_are_what_the_script_writes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-m", "scripts.generate_mini_text", tmp_path]
    subprocess.run(command, env=environment, cwd=ROOT, check=True)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert written == sorted(
        Path(name) / file for name in MINI_TEXT for file in ("dev.jsonl", "task.toml", "train.jsonl")
    )
    for path in written:
        assert (tmp_path / path).read_bytes() == (MINI_TEXT_FOLDER / path).read_bytes()


@TASKS
def test_rows(name: str) -> None:
    for split, size in SIZES.items():
        assert len(DATA[name, split]) == size
        assert all(list(row) == ["prompt", "completion"] for row in DATA[name, split])
    prompts = [row["prompt"] for split in SIZES for row in DATA[name, split]]
    assert len(set(prompts)) == len(prompts)
    metrics = tomllib.loads((MINI_TEXT_FOLDER / name / "task.toml").read_text())["metrics"]
    assert "exact_match" in metrics
    assert set(metrics) <= {"exact_match", "rouge_l", "json_f1"}


@TASKS
def test_dev_has_words_that_train_lacks(name: str) -> None:
    held_out = {word for words in (PEOPLE, THINGS) for word in words.split(", ")[HELD_OUT - 1 :: HELD_OUT]}
    shares = {
        split: sum(any(re.search(rf"\b{word}s?\b", row["prompt"]) for word in held_out) for row in DATA[name, split])
        / size
        for split, size in SIZES.items()
    }
    assert shares["train"] == 0
    assert 0.2 < shares["dev"] < 0.8


def test_json_tells_what_happened() -> None:
    for sentence, completion in rows("mini-json"):
        event = EVENT.fullmatch(sentence)
        assert event, sentence
        expected = {"who": event["who"], "item": event["item"], "count": COUNTS[event["count"]]}
        if day := event["early"] or event["late"]:
            expected["day"] = day
        assert completion == json.dumps(expected)


def test_denial_denies() -> None:
    for sentence, completion in rows("mini-denial"):
        event = EVENT.fullmatch(sentence)
        assert event, sentence
        told = f"{event['verb']} {event['count']} "
        assert completion == sentence.replace(told, f"did not {VERBS[event['verb']]} any ")


def test_sums_are_right() -> None:
    signs = {"+": 0, "-": 0}
    for sentence, completion in rows("mini-steps"):
        count, price, product, sign, other, result = re.fullmatch(
            r"(\d+) \* (\d+) = (\d+), ([+-]) (\d+) = (\d+)", completion
        ).groups()
        assert int(count) * int(price) == int(product)
        assert int(product) + int(sign + other) == int(result) >= 0
        number = next(word for word, value in COUNTS.items() if value == int(count))
        assert f" bought {number} " in sentence
        assert f" for {price} each " in sentence
        assert sentence.endswith(f" for {other}." if sign == "+" else f" got {other} back.")
        signs[sign] += 1
    assert min(signs.values()) > 0.4 * sum(signs.values())


def test_queries_ask_for_what_the_sentence_does_not_tell() -> None:
    asked = set()
    for sentence, completion in rows("mini-sql"):
        column, table, *known = re.fullmatch(
            r"SELECT (\w+) FROM (\w+) WHERE (\w+) = '(\w+)' AND (\w+) = '(\w+)'", completion
        ).groups()
        conditions = dict(zip(known[::2], known[1::2], strict=True))
        assert all(value in sentence for value in conditions.values())
        verb = next(verb for verb, base in VERBS.items() if base == table)
        assert {verb, table} & set(re.findall(r"\w+", sentence))
        assert column == {"Who": "who", "What": "item", "When": "day", "How": "count"}[sentence.split()[0]]
        assert column not in conditions
        asked.add(column)
    assert asked == {"who", "item", "day", "count"}


@pytest.mark.slow
def test_rows_are_short_and_prompts_end_at_a_token(smollm2: str) -> None:
    from transformers import AutoTokenizer

    from osrm_cli.models.base_model import find_base_model

    tokenizer = AutoTokenizer.from_pretrained(find_base_model(smollm2))
    for row in (row for every in DATA.values() for row in every):
        prompt, completion = (tokenizer(row[part]).input_ids for part in ("prompt", "completion"))
        assert tokenizer(row["prompt"] + row["completion"]).input_ids == prompt + completion
        assert 15 <= len(prompt + completion) <= 45
