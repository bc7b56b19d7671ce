"""Grammars of the tasks that ask what follows from a text."""

from osrm_cli.tasks.mini.draw import Draw

USUAL = 0.9
"""How often a premise is of the usual side; see the package's docstring."""

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
    given, follows, clashes = (ACTIVE, AWAKE, ASLEEP) if draw.chance(USUAL) else (RESTING, ASLEEP, AWAKE)
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
    asked = usual if draw.chance(USUAL) else draw.one(others)
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
    animals, own, foreign = bird if draw.chance(USUAL) else beast
    act = draw.word(ACTS)
    return f"the {draw.word(animals)} {act}", f"something with {draw.word(foreign if label else own)} {act}"
