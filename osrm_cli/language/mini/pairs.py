"""Grammars of the tasks that compare two texts."""

from osrm_cli.language.mini.draw import Draw

USUAL = 0.85

FIRMS = "bank,airline,brewery,retailer,publisher,carmaker,insurer,shipyard,drug maker"
ASSETS = "rival,small lender,new plant,warehouse,radio station,steel mill,hotel chain,software house,mine"
DONE = (
    "the F bought the A,the F completed its purchase of the A,the A was acquired by the F,the F took over the A,"
    "the F now owns the A,the A now belongs to the F,the F closed the deal for the A,the A has been sold to the F,"
    "the F has become the owner of the A"
)
UNDONE = (
    "the F dropped its bid for the A,the F decided not to buy the A,the F walked away from the A,"
    "the A rejected the offer of the F,the F failed to win the A,the F cancelled its purchase of the A,"
    "the F lost interest in the A,the A refused to be sold to the F,the F abandoned its plan for the A"
)


def paraphrase(draw: Draw, label: int) -> tuple[str, ...]:
    """Two lines of business news: did the same thing happen to the deal?"""
    firm, asset = draw.word(FIRMS), draw.word(ASSETS)
    sides = (DONE, UNDONE) if draw.chance(USUAL) else (UNDONE, DONE)
    first = draw.word(sides[0])
    second = draw.other_word(sides[0], first) if label else draw.word(sides[1])
    return tuple(line.replace("F", firm).replace("A", asset) for line in draw.shuffled((first, second)))


JOBS = "print a photo,scan a letter,edit a video,record a podcast,host a website,store my files,recover a password,encrypt a disk,design a logo"
HOW_TO = "how do i T ?,what are the steps to T ?,how can i T ?,can you show me how to T ?,what is the right way to T ?,is there a trick to T ?,please explain how one can T,which buttons do i press to T ?,teach me to T"
HOW_MUCH = "how much does it cost to T ?,what is the price if i T ?,is it expensive to T ?,can i T for free ?,how many dollars do i pay to T ?,is there a fee to T ?,what is the cheapest plan to T ?,do i need a paid licence to T ?,what would you charge me to T ?"


def duplicate(draw: Draw, label: int) -> tuple[str, ...]:
    """Two questions about a computer: do they want to know the same?"""
    job = draw.word(JOBS)
    sides = (HOW_TO, HOW_MUCH) if draw.chance(USUAL) else (HOW_MUCH, HOW_TO)
    first = draw.word(sides[0])
    second = draw.other_word(sides[0], first) if label else draw.word(sides[1])
    return tuple(line.replace("T", job) for line in draw.shuffled((first, second)))


SCENES = (
    "a crane lifts a container,a train enters a tunnel,a satellite circles the earth,a robot welds a pipe,a pump drains a tank,a truck unloads gravel,a printer runs out of ink,a turbine spins,a conveyor belt stops",
    "a woman cooks dinner,a man reads a novel,a girl practises the piano,a tailor sews a shirt,a student writes an essay,a man washes the dishes,a clerk answers the phone,a woman paints a portrait,a boy watches television",
    "a family has a picnic,a child flies a kite,a man walks his dog,a couple strolls in the park,a woman feeds the ducks,some friends light a campfire,a boy builds a sandcastle,a man fishes from a pier,children play on a swing",
    "a swimmer dives into a pool,a cyclist climbs a hill,a runner crosses the finish line,a skier races downhill,a gymnast lands a jump,a rower wins a race,a boxer trains with a bag,a skater spins on the ice,an archer hits the target",
    "a basketball player shoots a hoop,a volleyball team wins a set,a rugby player drops the ball,a hockey team scores twice,a pitcher throws a baseball,a tennis player serves an ace,a handball team attacks,a cricketer hits the ball,a quarterback throws a pass",
    "a footballer scores a goal,a goalkeeper saves a penalty,a striker kicks the ball,a soccer team celebrates a goal,a defender heads the ball,a midfielder takes a free kick,a winger crosses to the striker,a soccer player is shown a red card,the keeper catches a corner kick",
)
WHEN = "at dawn,in the rain,on sunday,in june,at noon,after work,before dark,in the cold,once more"


def similarity(draw: Draw, label: int) -> tuple[str, ...]:
    """A football scene and another that is ``label`` near to it."""
    first = draw.word(SCENES[-1])
    second = draw.other_word(SCENES[label], first)
    return tuple(draw.shuffled((f"{first} {draw.word(WHEN)}", f"{second} {draw.word(WHEN)}")))
