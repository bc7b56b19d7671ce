"""Generate the eight small tasks that ship with the package: ``python scripts/generate_mini_tasks.py [FOLDER]``.

They have the shapes of the eight GLUE tasks (one sentence or two; two classes, three, or a score) and nothing else of
theirs: each is written by a small grammar of its own, over a vocabulary of its own, from a fixed seed. Labels are
balanced, and no example occurs twice, in one split or across both.

Two habits of the grammars make the tasks neither trivial nor hopeless for a small encoder after a minute's training:

- One word or phrase in three occurs in dev alone, so counting words is not enough; knowing what they mean is.
- A pair starts from one side of its contrast more often than from the other. A model that only notices the contrast is
  right on the usual pairs; the others have to be compared. Labels themselves are never wrong.
"""

import hashlib
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from osrm_cli.tasks.mini import MINI, MINI_FOLDER

T = TypeVar("T")

SIZES = {"train": 256, "dev": 200}

HELD_OUT = 3
"""One word in this many is kept for the dev split."""


class Draw:
    """A stream of choices, fixed by its key.

    Only ``random.Random.random`` is used: Python promises its sequence for a given seed, but not that of ``choice``,
    ``sample`` or ``shuffle``.

    Args:
        key: Names the stream; equal keys give equal choices.
        every_word: Whether :meth:`word` may draw the held-out words as well.
    """

    def __init__(self, key: str, every_word: bool) -> None:
        digest = hashlib.sha256(key.encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:8], "big"))
        self._every_word = every_word

    def chance(self, probability: float) -> bool:
        """Return true with the given probability."""
        return self._random.random() < probability

    def one(self, items: Sequence[T]) -> T:
        """One of ``items``, all equally likely."""
        return items[int(self._random.random() * len(items))]

    def other(self, items: Sequence[T], than: T) -> T:
        """One of ``items`` that is not ``than``."""
        return self.one([item for item in items if item != than])

    def word(self, words: str) -> str:
        """One of the comma-separated ``words``; in train, none of the held-out ones."""
        return self.one(self._allowed(words))

    def other_word(self, words: str, than: str) -> str:
        """Like :meth:`word`, but not ``than``."""
        return self.other(self._allowed(words), than)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """``items`` in a random order."""
        return [item for _, _, item in sorted((self._random.random(), place, item) for place, item in enumerate(items))]

    def _allowed(self, words: str) -> list[str]:
        every = [word.strip() for word in words.split(",")]
        return every if self._every_word else [word for place, word in enumerate(every, 1) if place % HELD_OUT]


WORKERS = (
    "farmer, shepherd, milkmaid, gardener, blacksmith, miller, beekeeper, ploughman, weaver, groom, cooper, thatcher"
)
WORK = "mended, painted, cleaned, carried, washed, inspected, built, hid, watched, repaired, moved, sold"
TOOLS = "fence, gate, plough, wagon, bucket, haystack, barrel, ladder, saddle, trough, cart, scarecrow"
YARDS = "barn, orchard, meadow, henhouse, mill, pasture, stable, vineyard, well"
FAULTS = (*["shuffled"] * 6, *["no verb"] * 5, "verb for noun")


def grammar(draw: Draw, label: int) -> tuple[str, ...]:
    """A sentence about work on a farm; label 0 scrambles its words, or has a verb too many or too few."""
    worker, work, tool, yard = (draw.word(words) for words in (WORKERS, WORK, TOOLS, YARDS))
    fault = "" if label else draw.one(FAULTS)
    if fault == "verb for noun":
        tool = draw.other_word(WORK, work)
    elif fault == "no verb":
        work = "the"
    words = f"the {worker} {work} the {tool} {draw.one(('near', 'behind', 'beside'))} the {yard}".split()
    return (" ".join(draw.shuffled(words) if fault == "shuffled" else words),)


DISHES = "soup, salad, steak, dessert, coffee, pasta, fish, bread, wine, service, waiter, table, music, terrace, menu"
GOOD = """
    delicious, wonderful, excellent, charming, superb, delightful, tasty, perfect, lovely, impressive, splendid, great,
    fantastic, outstanding, refreshing, memorable, satisfying, exquisite
"""
BAD = """
    awful, terrible, disgusting, bland, dreadful, disappointing, stale, horrible, rude, greasy, miserable, soggy,
    unpleasant, tasteless, filthy, mediocre, annoying, atrocious
"""
SHAPES = ("plain", "plain", "plain", "twice", "twice", "negated", "concession first", "concession last")


def mood(draw: Draw, label: int) -> tuple[str, ...]:
    """A restaurant guest's verdict; negations turn it round and concessions distract from it."""
    right, wrong = (GOOD, BAD) if label else (BAD, GOOD)
    dish = draw.word(DISHES)
    other = draw.other_word(DISHES, dish)
    shape = draw.one(SHAPES)
    if shape == "plain":
        return (f"the {dish} was {draw.one(('truly', 'quite', 'simply', 'rather'))} {draw.word(right)}",)
    if shape == "twice":
        return (f"the {dish} was {draw.word(right)} and the {other} was {draw.word(right)}",)
    if shape == "negated":
        return (f"the {dish} was {draw.one(('not at all', 'never', 'far from'))} {draw.word(wrong)}",)
    if shape == "concession first":
        return (f"although the {dish} was {draw.word(wrong)} , the {other} was {draw.word(right)}",)
    return (f"the {dish} was {draw.word(right)} , although the {other} was {draw.word(wrong)}",)


USUAL_PAIR = 0.85
"""How often a pair starts from the usual side; see the module's docstring."""

FIRMS = "bank, airline, brewery, retailer, publisher, carmaker, insurer, shipyard, telecom"
TARGETS = "rival, small lender, new plant, warehouse, radio station, steel mill, hotel chain, vineyard, mine"
DONE = """
    {firm} bought {target}, {firm} completed its purchase of {target}, {target} was acquired by {firm},
    {firm} took over {target}, {firm} now owns {target}, {target} now belongs to {firm},
    {firm} closed the deal for {target}, {target} has been sold to {firm}, {firm} became the owner of {target}
"""
UNDONE = """
    {firm} dropped its bid for {target}, {firm} decided not to buy {target}, {firm} walked away from {target},
    {target} rejected the offer of {firm}, {firm} failed to win {target}, {firm} cancelled its purchase of {target},
    {firm} lost interest in {target}, {target} refused to be sold to {firm}, {firm} abandoned its plan for {target}
"""


def paraphrase(draw: Draw, label: int) -> tuple[str, ...]:
    """Two lines of business news: did the same become of the deal?"""
    firm, target = f"the {draw.word(FIRMS)}", f"the {draw.word(TARGETS)}"
    return tuple(line.format(firm=firm, target=target) for line in _two_of(draw, label, DONE, UNDONE))


JOBS = """
    print photos, scan letters, edit videos, record podcasts, host websites, store files, recover passwords,
    encrypt disks, design logos
"""
HOW_TO = """
    how do i {job}, what are the steps to {job}, how can i {job}, show me how to {job}, what is the right way to {job},
    is there a trick to {job}, explain how to {job}, which buttons do i press to {job}, teach me to {job}
"""
HOW_MUCH = """
    how much does it cost to {job}, what is the price to {job}, is it expensive to {job}, can i {job} for free,
    how many dollars to {job}, is there a fee to {job}, what is the cheapest plan to {job},
    do i need a paid licence to {job}, what would you charge to {job}
"""


def duplicate(draw: Draw, label: int) -> tuple[str, ...]:
    """Two questions about a computer: do they want to know the same?"""
    job = draw.word(JOBS)
    return tuple(question.format(job=job) for question in _two_of(draw, label, HOW_TO, HOW_MUCH))


def _two_of(draw: Draw, same: int, usual: str, unusual: str) -> list[str]:
    """Two phrases from one side, or one from each, in a random order."""
    side, opposite = (usual, unusual) if draw.chance(USUAL_PAIR) else (unusual, usual)
    first = draw.word(side)
    return draw.shuffled((first, draw.other_word(side, first) if same else draw.word(opposite)))


SCENES = (
    """
    a crane lifts a container, a train enters a tunnel, a satellite circles the earth, a robot welds a pipe,
    a pump drains a tank, a truck unloads gravel, a printer runs out of ink, a turbine spins, a conveyor belt stops
    """,
    """
    a woman cooks dinner, a man reads a novel, a girl plays the piano, a tailor sews a shirt, a student writes an essay,
    a man washes the dishes, a clerk answers the phone, a woman paints a portrait, a boy watches television
    """,
    """
    a family has a picnic, a child flies a kite, a man walks his dog, a couple strolls in the park,
    a woman feeds the ducks, some friends light a campfire, a boy builds a sandcastle, a man fishes from a pier,
    children play on a swing
    """,
    """
    a swimmer dives into a pool, a cyclist climbs a hill, a runner crosses the finish line, a skier races downhill,
    a gymnast lands a jump, a rower wins a race, a boxer trains with a bag, a skater spins on the ice,
    an archer hits the target
    """,
    """
    a basketball player shoots a hoop, a volleyball team wins a set, a rugby player drops the ball,
    a hockey team scores twice, a pitcher throws a baseball, a tennis player serves an ace, a handball team attacks,
    a cricketer hits the ball, a quarterback throws a pass
    """,
    """
    a footballer scores a goal, a goalkeeper saves a penalty, a striker kicks the ball, a soccer team celebrates a goal,
    a defender heads the ball, a midfielder takes a free kick, a winger crosses to the striker,
    a soccer player is sent off, the keeper catches a corner kick
    """,
)
"""From nothing in common with football to football itself: the index is the score."""
MOMENTS = "at dawn, in the rain, on sunday, in june, at noon, after work, before dark, in the cold, once more"


def similarity(draw: Draw, label: int) -> tuple[str, ...]:
    """A football scene and another whose kind is ``label`` near to it."""
    football = draw.word(SCENES[-1])
    scenes = draw.shuffled((football, draw.other_word(SCENES[label], football)))
    return tuple(f"{scene} {draw.word(MOMENTS)}" for scene in scenes)


USUAL_PREMISE = 0.9
"""How often a premise is of the usual side; see the module's docstring."""

TRAVELLERS = "pilgrim, tourist, hitchhiker, nun, diplomat, backpacker, nomad, explorer, botanist"
ACTIVE = """
    is climbing a steep trail, is hiking across the dunes, is paddling down the river, is marching through the snow,
    is crossing the glacier, is trekking over the pass, is cycling along the coast, is wandering in the canyon,
    is riding a mule uphill
"""
RESTING = """
    is napping in a hotel, is dozing on the sofa, is snoring in the cabin, is curled up under a blanket,
    is sound asleep at the inn, is dreaming in a hammock, is sleeping in late, is resting in a quiet room,
    is slumbering in the lodge
"""
AWAKE = """
    is outdoors, is on the move, is getting some exercise, is under the open sky, is travelling on,
    roams the wilderness, is walking around, is far from any building, enjoys fresh air, is exploring nature,
    is physically active, makes a long journey
"""
ASLEEP = """
    is asleep, is lying in bed, is taking a nap, is not awake, is having a dream, snoozes peacefully, is in a bedroom,
    has gone to bed, keeps both eyes closed, is tucked in, is sleeping soundly, rests on a pillow
"""
UNSAID = """
    has two brothers, speaks greek, lost some money, is fond of opera, studied law, inherited a fortune,
    will marry next year, owns a bakery, collects stamps, has a daughter, works for a lawyer, writes poems
"""


def inference(draw: Draw, label: int) -> tuple[str, ...]:
    """What a traveller does, and a claim that follows, stays open or clashes."""
    who = f"the {draw.word(TRAVELLERS)}"
    given, follows, clashes = (ACTIVE, AWAKE, ASLEEP) if draw.chance(USUAL_PREMISE) else (RESTING, ASLEEP, AWAKE)
    return f"{who} {draw.word(given)}", f"{who} {draw.word((follows, UNSAID, clashes)[label])}"


BUILDINGS = """
    old bridge, castle, lighthouse, cathedral, clock tower, museum, palace, theatre, monastery, library, town hall,
    fortress
"""
FACTS = {
    "when was the {building} built, how old is the {building}, in which year did the {building} open": """
        in 1874, three centuries ago, during the middle ages, in the spring of 1632, just after the war, in 1911,
        last century, around the year 1200, in the 1930s
    """,
    "how tall is the {building}, how big is the {building}, how high is the {building}": """
        60 metres high, as tall as 12 houses, 200 feet long, 90 steps high, wide enough for 40 carts, 7 metres tall,
        35 yards across, larger than 3 fields, 150 feet tall
    """,
    "where is the {building}, how do i find the {building}, in what place is the {building}": """
        on a cliff, next to the harbour, on a small island, near the forest, by the river, in the old quarter,
        on top of a hill, south of the market, beyond the railway
    """,
    "what is the {building} made of, what was used for the {building}, is the {building} of stone": """
        from red brick, out of granite, with oak beams, of white marble, in iron and glass, from sandstone,
        out of timber, of rough limestone, with copper sheets
    """,
}
"""Questions about a building and the endings that answer them; the first kind is asked most."""
TOLD = "the {building} was built {fact}, they put up the {building} {fact}, people raised the {building} {fact}"


def answer(draw: Draw, label: int) -> tuple[str, ...]:
    """A question about a building, and a sentence that answers it or tells something else."""
    building = draw.word(BUILDINGS)
    usual, *others = FACTS
    asked = usual if draw.chance(USUAL_PREMISE) else draw.one(others)
    told = draw.other(tuple(FACTS), asked) if label else asked
    sentence = draw.word(TOLD).format(building=building, fact=draw.word(FACTS[told]))
    return draw.word(asked).format(building=building), sentence


BIRDS = "sparrow, eagle, parrot, owl, robin, pigeon, swan, falcon, wren, goose, penguin, crow"
BEASTS = "horse, fox, cow, wolf, goat, deer, rabbit, lion, bear, donkey, otter, camel"
OF_BIRDS = "feathers, a beak, wings, plumage, a nest of eggs, talons, tail feathers, bright plumes, webbed feet"
OF_BEASTS = "fur, hooves, four legs, a hairy coat, paws, antlers, a woolly coat, whiskers, a mane"
ACTS = """
    crossed the path, hid under a leaf, drank from the pond, moved slowly, escaped, slept in the shade,
    looked at the moon, was photographed, made a noise
"""


def entail(draw: Draw, label: int) -> tuple[str, ...]:
    """What an animal did; did something with the parts of its kind do it?"""
    bird = (BIRDS, OF_BIRDS, OF_BEASTS)
    beast = (BEASTS, OF_BEASTS, OF_BIRDS)
    animals, own, foreign = bird if draw.chance(USUAL_PREMISE) else beast
    act = draw.word(ACTS)
    return f"the {draw.word(animals)} {act}", f"something with {draw.word(foreign if label else own)} {act}"


GRAMMARS: dict[str, Callable[[Draw, int], tuple[str, ...]]] = {
    "mini-grammar": grammar,
    "mini-mood": mood,
    "mini-paraphrase": paraphrase,
    "mini-duplicate": duplicate,
    "mini-similarity": similarity,
    "mini-inference": inference,
    "mini-answer": answer,
    "mini-entail": entail,
}


def generate_rows(name: str, split: str, seen: set[tuple[str, ...]]) -> list[dict[str, str | int | float]]:
    """One split of a task: its text columns and ``label``, the index of a class or a score.

    Args:
        name: The task.
        split: ``train`` or ``dev``.
        seen: Texts that may not occur again; those of this split are added.
    """
    columns, labels = MINI[name]["columns"], MINI[name]["labels"]
    draw = Draw(f"{name} {split}", every_word=split != "train")
    rows: list[dict[str, str | int | float]] = []
    while len(rows) < SIZES[split]:
        label = len(rows) % len(labels or range(len(SCENES)))
        texts = GRAMMARS[name](draw, label)
        if texts not in seen:
            seen.add(texts)
            rows.append(dict(zip(columns, texts, strict=True)) | {"label": label if labels else float(label)})
    return draw.shuffled(rows)


def write_tasks(folder: Path) -> None:
    """Write ``<task>/<split>.jsonl`` for each task."""
    for name in MINI:
        seen: set[tuple[str, ...]] = set()
        for split in SIZES:
            lines = [json.dumps(row) + "\n" for row in generate_rows(name, split, seen)]
            path = folder / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes("".join(lines).encode())


if __name__ == "__main__":
    write_tasks(Path(sys.argv[1]) if len(sys.argv) > 1 else MINI_FOLDER)
