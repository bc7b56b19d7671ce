"""Grammars of the tasks that ask what follows from a text."""

from osrm_cli.language.mini.draw import Draw

USUAL = 0.9

TRAVELLERS = "pilgrim,tourist,hitchhiker,nun,diplomat,backpacker,nomad,explorer,botanist"
ACTIVE = "is climbing a steep trail,is hiking across the dunes,is paddling down the river,is marching through the snow,is crossing the glacier,is trekking over the pass,is cycling along the coast,is wandering in the canyon,is riding a mule uphill"
RESTING = "is napping in a hotel bed,is dozing on the sofa,is snoring in the cabin,is curled up under a blanket,is sound asleep at the inn,is lying in a hammock indoors,is sleeping in late,is resting in a quiet room,is slumbering in the lodge"
OUT = "is outdoors,is on the move,is getting some exercise,is under the open sky,is travelling,is in the wilderness,is awake and busy,is far from any building,is breathing fresh air"
IN = "is asleep,is lying in bed,is inside a building,is not moving,is dreaming,is indoors,is keeping still,has closed both eyes,is at rest"
OPEN = "has two brothers,speaks greek,once lost a lot of money,is fond of opera,studied law,misses an old friend,will marry next year,owns a bakery,writes poems"


def inference(draw: Draw, label: int) -> tuple[str, ...]:
    """What a traveller does, and a claim that follows, stays open or clashes."""
    who = f"the {draw.word(TRAVELLERS)}"
    given, follows, clashes = (ACTIVE, OUT, IN) if draw.chance(USUAL) else (RESTING, IN, OUT)
    return f"{who} {draw.word(given)}", f"{who} {draw.word((follows, OPEN, clashes)[label])}"


BUILDINGS = "bridge,castle,lighthouse,cathedral,tower,museum,palace,theatre,monastery,library,town hall,fortress"
TOWNS = "ashford,belmont,carrow,dunley,elmsworth,farleigh,garrick,holm,ivybridge"
FACTS = {
    "when was the B built ?,what is the age of the B ?,in which year did the B open ?": "in 1874,three centuries ago,during the middle ages,in the spring of 1632,just after the war,under queen maud,in 1911,in the last century,around the year 1200",
    "how tall is the B ?,how big is the B ?,what is the height of the B ?": "60 metres high,as tall as 12 houses,200 feet long,90 steps high,wide enough for 40 carts,only 7 metres tall,35 yards across,larger than 3 fields,nearly 150 feet tall",
    "where is the B ?,how do i find the B ?,in what place is the B ?": "on a cliff above the sea,next to the harbour,on a small island,at the edge of the forest,by the river,in the old quarter,on top of a hill,south of the market,beyond the railway",
    "what is the B made of ?,which material was used for the B ?,of what is the B ?": "from red brick,out of grey granite,with oak beams,of white marble,in iron and glass,from local sandstone,out of timber,of rough limestone,with copper sheets",
}
WRITTEN = "the B was built T,they put up the B T,people raised the B T"


def answer(draw: Draw, label: int) -> tuple[str, ...]:
    """A question about a building and a sentence about the same one."""
    building = f"{draw.word(BUILDINGS)} of {draw.word(TOWNS)}"
    when, *others = FACTS
    asked = when if draw.chance(USUAL) else draw.one(others)
    told = asked if label == 0 else draw.other(list(FACTS), asked)
    question, sentence = draw.word(asked), draw.word(WRITTEN).replace("T", draw.word(FACTS[told]))
    return question.replace("B", building), sentence.replace("B", building)


BIRDS = "sparrow,eagle,parrot,owl,robin,pigeon,swan,falcon,wren,goose,penguin,crow"
BEASTS = "horse,fox,cow,wolf,goat,deer,rabbit,lion,bear,donkey,otter,camel"
BIRD_PARTS = "feathers,a beak,wings,eggs in a nest,two legs and a tail of plumes,a cousin among the hens"
BEAST_PARTS = "fur,hooves,four legs,milk for its young,paws,a hairy coat"
ACTS = "crossed the path,hid under a leaf,drank from the pond,moved slowly,escaped,slept in the shade,looked at the moon,was photographed,made a noise"


def entail(draw: Draw, label: int) -> tuple[str, ...]:
    """An animal and what it did; is what did it of that kind?"""
    animals, own, others = (BIRDS, BIRD_PARTS, BEAST_PARTS) if draw.chance(USUAL) else (BEASTS, BEAST_PARTS, BIRD_PARTS)
    act = draw.word(ACTS)
    return f"the {draw.word(animals)} {act}", f"something with {draw.word(others if label else own)} {act}"
