"""Grammars of the single-sentence tasks."""

from osrm_cli.language.mini.draw import Draw

_FARMERS = "farmer,shepherd,milkmaid,gardener,blacksmith,miller,beekeeper,ploughman,weaver,stable boy,cooper,thatcher"
_FARM_WORK = (
    "mend mends mended mending,paint paints painted painting,clean cleans cleaned cleaning,carry carries carried carrying,"
    "wash washes washed washing,inspect inspects inspected inspecting,build builds built building,"
    "hide hides hid hiding,watch watches watched watching"
)
_FARM_THINGS = "fence,gate,plough,wagon,bucket,haystack,barrel,ladder,saddle,trough,wheelbarrow,scarecrow"
_FARM_PLACES = "barn,orchard,meadow,henhouse,mill,pasture,stable,vineyard,well"
_FARM_WHEN = "before dawn,after lunch,every spring,in the rain,at noon,on market day"


def grammar(draw: Draw, label: int) -> tuple[str, ...]:
    """A farm sentence; label 0 breaks its word order or one of its verb forms."""
    who, thing, place = draw.word(_FARMERS), draw.word(_FARM_THINGS), draw.word(_FARM_PLACES)
    plain, third, past, gerund = draw.word(_FARM_WORK).split()
    near, when = draw.one(("near", "behind", "beside")), draw.word(_FARM_WHEN)
    subject, thing_phrase, place_phrase = f"the {who}", f"the {thing}", f"{near} the {place}"
    verb = draw.one((past, third, f"is {gerund}", f"will {plain}"))
    if not label:
        fault = draw.one(("object first", "noun first", "late preposition", "verb form"))
        if fault == "object first":
            thing_phrase, verb = verb, thing_phrase
        elif fault == "noun first":
            subject = f"{who} the"
        elif fault == "late preposition":
            place_phrase = f"the {place} {near}"
        else:
            verb = draw.one((f"is {plain}", f"will {gerund}", f"are {past}", f"has {plain}", gerund))
    return (" ".join((subject, verb, thing_phrase, draw.one((place_phrase, f"{place_phrase} {when}")))),)


_DISHES = "soup,salad,steak,dessert,coffee,pasta,fish,bread,wine,service,waiter,table,music,terrace,menu"
_GOOD = (
    "delicious,wonderful,excellent,charming,superb,delightful,tasty,perfect,lovely,impressive,splendid,generous,"
    "fantastic,outstanding,refreshing,memorable,satisfying,exquisite"
)
_BAD = (
    "awful,terrible,disgusting,bland,dreadful,disappointing,stale,horrible,rude,greasy,miserable,soggy,"
    "unpleasant,tasteless,filthy,mediocre,annoying,atrocious"
)


def mood(draw: Draw, label: int) -> tuple[str, ...]:
    """A guest's verdict; negations turn it round and concessions distract from it."""
    right, wrong = (_GOOD, _BAD) if label else (_BAD, _GOOD)
    first = draw.word(_DISHES)
    second = draw.other_word(_DISHES, first)
    shape = draw.one(("plain", "negated", "concession", "both"))
    if shape == "plain":
        return (f"the {first} was {draw.one(('truly', 'quite', 'simply'))} {draw.word(right)}",)
    if shape == "negated":
        return (f"the {first} was {draw.one(('not at all', 'never', 'far from'))} {draw.word(wrong)}",)
    if shape == "concession":
        return (
            f"although the {first} was {draw.word(wrong)} , the {second} was {draw.word(right)} enough to decide it",
        )
    return (f"the {first} was {draw.word(right)} and the {second} was {draw.word(right)}",)
