"""Grammars of the tasks that compare two texts."""

from osrm_cli.tasks.mini.draw import Draw

USUAL = 0.85
"""How often a pair starts from the usual side; see the package's docstring."""

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
    side, opposite = (usual, unusual) if draw.chance(USUAL) else (unusual, usual)
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
