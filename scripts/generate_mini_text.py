"""Generate the four small text tasks that ship with the package: ``python -m scripts.generate_mini_text [FOLDER]``.

All speak of the same people, things and days, and each answers in a format of its own: JSON, a sentence, a sum in
steps, SQL. A prompt is a cue, a sentence and a line break, so that a merged model has only the cue to tell the tasks
apart by. Prompt and completion together take 17 to 40 tokens of SmolLM2.

One name and one thing in three occur in dev alone, so answers have to be read off the prompt.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from osrm_cli.tasks.mini_text import MINI_TEXT, MINI_TEXT_FOLDER
from scripts.generate_mini_tasks import Draw

SIZES = {"train": 256, "dev": 64}

PEOPLE = "Anna, Ben, Clara, David, Emma, Felix, Grace, Henry, Iris, Jack, Laura, Mark, Nina, Oscar, Paula"
THINGS = "lamp, chair, table, clock, book, bike, phone, camera, guitar, mirror, jacket, carpet, drum, kettle, ladder"
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
VERBS = {
    "bought": "buy",
    "sold": "sell",
    "lost": "lose",
    "found": "find",
    "broke": "break",
    "took": "take",
    "chose": "choose",
    "drew": "draw",
    "ordered": "order",
    "cleaned": "clean",
}
COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}

Row = tuple[str, str]


def sentence_to_json(draw: Draw) -> Row:
    """What happened, as a JSON object; a day that is not told is left out."""
    who, thing = draw.word(PEOPLE), draw.word(THINGS)
    verb, count, day = draw.one(list(VERBS)), draw.one(list(COUNTS)), draw.one(DAYS)
    slots = {"who": who, "item": thing, "count": COUNTS[count]}
    shape = draw.one(("{who} {what}.", "{who} {what} on {day}.", "On {day}, {who} {what}."))
    if "{day}" in shape:
        slots["day"] = day
    return shape.format(who=who, what=f"{verb} {count} {thing}s", day=day), json.dumps(slots)


def deny(draw: Draw) -> Row:
    """The sentence's denial: another form of the verb, and no number."""
    who, thing = draw.word(PEOPLE), draw.word(THINGS)
    verb, count, day = draw.one(list(VERBS)), draw.one(list(COUNTS)), draw.one(DAYS)
    shape = draw.one(("{who} {what}.", "{who} {what} on {day}.", "On {day}, {who} {what}."))
    told = shape.format(who=who, what=f"{verb} {count} {thing}s", day=day)
    return told, shape.format(who=who, what=f"did not {VERBS[verb]} any {thing}s", day=day)


def reckon(draw: Draw) -> Row:
    """What a purchase came to: a product, then a sum or a difference."""
    who, thing, other = draw.word(PEOPLE), draw.word(THINGS), draw.word(THINGS)
    count, price = draw.one(list(COUNTS)), draw.one(range(2, 10))
    product = COUNTS[count] * price
    bought = f"{who} bought {count} {thing}s for {price} each"
    if draw.chance(0.5):
        extra = draw.one(range(2, 10))
        return (
            f"{bought} and a {other} for {extra}.",
            f"{COUNTS[count]} * {price} = {product}, + {extra} = {product + extra}",
        )
    back = draw.one(range(1, min(product, 10)))
    return f"{bought} and got {back} back.", f"{COUNTS[count]} * {price} = {product}, - {back} = {product - back}"


def question_to_sql(draw: Draw) -> Row:
    """A question as a query: the verb is the table, what is asked for the column."""
    who, thing = draw.word(PEOPLE), draw.word(THINGS)
    verb, day = draw.one(list(VERBS)), draw.one(DAYS)
    base = VERBS[verb]
    question, column, *known = draw.one(
        (
            (f"Who {verb} {thing}s on {day}?", "who", ("item", thing), ("day", day)),
            (f"What did {who} {base} on {day}?", "item", ("who", who), ("day", day)),
            (f"When did {who} {base} {thing}s?", "day", ("who", who), ("item", thing)),
            (f"How many {thing}s did {who} {base}?", "count", ("who", who), ("item", thing)),
        )
    )
    where = " AND ".join(f"{name} = '{value}'" for name, value in known)
    return question, f"SELECT {column} FROM {base} WHERE {where}"


# Cue, grammar and metrics.
TASKS: dict[str, tuple[str, Callable[[Draw], Row], tuple[str, ...]]] = {
    "mini-json": ("JSON", sentence_to_json, ("json_f1", "exact_match")),
    "mini-denial": ("Denial", deny, ("exact_match", "rouge_l")),
    "mini-steps": ("Sum", reckon, ("exact_match", "rouge_l")),
    "mini-sql": ("SQL", question_to_sql, ("exact_match", "rouge_l")),
}


def generate_rows(name: str, split: str, seen: set[str]) -> list[dict[str, str]]:
    """One split of a task.

    Args:
        name: The task.
        split: ``train`` or ``dev``.
        seen: Prompts that may not occur again; those of this split are added.
    """
    cue, grammar, _ = TASKS[name]
    draw = Draw(f"{name} {split}", every_word=split != "train")
    rows: list[dict[str, str]] = []
    while len(rows) < SIZES[split]:
        sentence, completion = grammar(draw)
        prompt = f"{cue}: {sentence}\n"
        if prompt not in seen:
            seen.add(prompt)
            rows.append({"prompt": prompt, "completion": completion})
    return rows


def write_tasks(folder: Path) -> None:
    """Write ``task.toml`` and ``<split>.jsonl`` for each task."""
    for name in MINI_TEXT:
        path, seen = folder / name, set[str]()
        path.mkdir(parents=True, exist_ok=True)
        (path / "task.toml").write_bytes(f"metrics = {json.dumps(TASKS[name][2])}\n".encode())
        for split in SIZES:
            lines = [json.dumps(row) + "\n" for row in generate_rows(name, split, seen)]
            (path / f"{split}.jsonl").write_bytes("".join(lines).encode())


if __name__ == "__main__":
    write_tasks(Path(sys.argv[1]) if len(sys.argv) > 1 else MINI_TEXT_FOLDER)
