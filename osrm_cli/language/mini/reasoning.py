"""Grammars of the tasks that ask what follows from a text."""

from osrm_cli.language.mini.draw import Draw

_TRAVELLERS = (
    "the pilgrim,the tourist,the sailor,the hitchhiker,the nun,the diplomat,the backpacker,the nomad,the explorer"
)
_STATES = (
    ("is asleep", "is snoring", "is resting", "is wide awake", "is alert"),
    ("is soaked", "is dripping", "is wet", "is dry", "is bone dry"),
    ("is freezing", "is shivering", "is cold", "is warm", "is sweating"),
    ("is laughing", "is overjoyed", "is happy", "is sad", "is crying"),
    ("is starving", "has eaten nothing", "is hungry", "is full", "has just eaten"),
)


def inference(draw: Draw, label: int) -> tuple[str, ...]:
    """A state of a traveller against another."""
    who, place = draw.word(_TRAVELLERS), draw.one(("on the train", "at the border", "in the tent", "on the ferry"))
    state = draw.one(_STATES)
    side = draw.one((state[:3], state[:2:-1]))
    given = draw.one(side)
    if label == 0:
        said = draw.other(side, given)
    elif label == 1:
        other = draw.other(_STATES, state)
        said = draw.one(other)
    else:
        said = draw.one(state[3:] if given in state[:3] else state[:3])
    return f"{who} {given} {place}", f"{who} {said}"


_BUILDINGS = "bridge,castle,lighthouse,cathedral,tower,museum,palace,theatre,monastery,library,town hall,fortress"
_NAMES = "ashford,belmont,carrow,dunley,elmsworth,farleigh,garrick,holm,ivybridge"


def answer(draw: Draw, label: int) -> tuple[str, ...]:
    """A question about a building and a sentence about the same one."""
    building = f"the {draw.word(_BUILDINGS)} of {draw.word(_NAMES)}"
    year, metres = 1400 + 7 * draw.one(range(80)), 10 + 3 * draw.one(range(60))
    river = draw.one(("hill", "river bank", "island", "cliff"))
    facts = (
        (f"when was {building} built ?", f"{building} was finished in {year}"),
        (f"how tall is {building} ?", f"{building} rises to {metres} metres"),
        (f"where is {building} ?", f"{building} stands on a {river}"),
        (f"who designed {building} ?", f"{building} is the work of the architect {draw.word(_NAMES)}"),
    )
    asked = draw.one(facts)
    told = asked if label == 0 else draw.other(facts, asked)
    return asked[0], told[1]


_KINDS = (
    ("sparrow,eagle,parrot,owl,robin,pigeon", "bird"),
    ("salmon,trout,cod,herring,carp,tuna", "fish"),
    ("beetle,wasp,ant,butterfly,mosquito,moth", "insect"),
    ("viper,lizard,crocodile,cobra,gecko,tortoise", "reptile"),
    ("poodle,terrier,spaniel,beagle,collie,greyhound", "dog"),
)
_ACTS = "crossed the path,hid under a leaf,was photographed,moved slowly,escaped,slept in the shade"


def entail(draw: Draw, label: int) -> tuple[str, ...]:
    """An animal did something; did an animal of this kind?"""
    kind = draw.one(_KINDS)
    act = draw.word(_ACTS)
    claimed = kind if label == 0 else draw.other(_KINDS, kind)
    return f"a {draw.word(kind[0])} {act} yesterday", f"some kind of {claimed[1]} {act}"
