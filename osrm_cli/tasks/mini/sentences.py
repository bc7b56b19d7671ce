"""Grammars of the single-sentence tasks."""

from osrm_cli.tasks.mini.draw import Draw

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
