"""Grammars of the single-sentence tasks."""

from osrm_cli.language.mini.draw import Draw

FARMERS = "farmer,shepherd,milkmaid,gardener,blacksmith,miller,beekeeper,ploughman,weaver,stable boy,cooper,thatcher"
FARM_WORK = "mended,painted,cleaned,carried,washed,inspected,built,hid,watched,repaired,moved,sold"
FARM_THINGS = "fence,gate,plough,wagon,bucket,haystack,barrel,ladder,saddle,trough,wheelbarrow,scarecrow"
FARM_PLACES = "barn,orchard,meadow,henhouse,mill,pasture,stable,vineyard,well"

FAULTS = ("shuffled", "shuffled", "no verb", "verb for noun", "noun for verb")


def grammar(draw: Draw, label: int) -> tuple[str, ...]:
    """A farm sentence; label 0 scrambles its words or puts a verb where a noun belongs, or the other way round."""
    subject, verb, thing = draw.word(FARMERS), draw.word(FARM_WORK), draw.word(FARM_THINGS)
    place = f"{draw.one(('near', 'behind', 'beside'))} the {draw.word(FARM_PLACES)}"
    fault = "" if label else draw.one(FAULTS)
    if fault == "no verb":
        verb = draw.one(("", "the"))
    elif fault == "verb for noun":
        thing = draw.other_word(FARM_WORK, verb)
    elif fault == "noun for verb":
        verb = draw.other_word(FARM_THINGS, thing)
    words = f"the {subject} {verb} the {thing} {place}".split()
    if fault == "shuffled":
        words = draw.shuffled(words)
    return (" ".join(words),)


DISHES = "soup,salad,steak,dessert,coffee,pasta,fish,bread,wine,service,waiter,table,music,terrace,menu"
GOOD = (
    "delicious,wonderful,excellent,charming,superb,delightful,tasty,perfect,lovely,impressive,splendid,generous,"
    "fantastic,outstanding,refreshing,memorable,satisfying,exquisite"
)
BAD = (
    "awful,terrible,disgusting,bland,dreadful,disappointing,stale,horrible,rude,greasy,miserable,soggy,"
    "unpleasant,tasteless,filthy,mediocre,annoying,atrocious"
)


def mood(draw: Draw, label: int) -> tuple[str, ...]:
    """A guest's verdict; negations turn it round and concessions distract from it."""
    right, wrong = (GOOD, BAD) if label else (BAD, GOOD)
    first = draw.word(DISHES)
    second = draw.other_word(DISHES, first)
    shape = draw.one(("plain", "both", "negated", "concession"))
    if shape == "plain":
        return (f"the {first} was {draw.one(('truly', 'quite', 'simply'))} {draw.word(right)}",)
    if shape == "negated":
        return (f"the {first} was {draw.one(('not at all', 'never', 'far from'))} {draw.word(wrong)}",)
    if shape == "concession":
        return (f"although the {first} was {draw.word(wrong)} , the {second} was {draw.word(right)}",)
    return (f"the {first} was {draw.word(right)} and the {second} was {draw.word(right)}",)
