"""Grammars of the tasks that compare two texts."""

from osrm_cli.language.mini.draw import Draw

_FIRMS = (
    "the bank,the airline,the brewery,the retailer,the publisher,the carmaker,the insurer,the shipyard,the drug maker"
)
_DEALS = (
    ("bought", "purchased", "acquired"),
    ("sold", "disposed of", "got rid of"),
    ("closed", "shut down", "stopped running"),
    ("praised", "applauded", "spoke well of"),
    ("sued", "took to court", "filed a lawsuit against"),
    ("postponed", "delayed", "put off"),
)
_ASSETS = (
    "a rival,its old office,the merger,a small lender,the new plant,its suppliers,a warehouse,the pension fund,a brand"
)
_WHEN = "on monday,last week,in march,this quarter,on friday,in autumn"


def paraphrase(draw: Draw, label: int) -> tuple[str, ...]:
    """Two news lines; label 0 changes what was done."""
    firm, asset, when = draw.word(_FIRMS), draw.word(_ASSETS), draw.word(_WHEN)
    deal = draw.one(_DEALS)
    first = draw.one(deal)
    second = draw.other(deal, first) if label else draw.one(draw.other(_DEALS, deal))
    return f"{firm} {first} {asset} {when}", f"{when} , {firm} {second} {asset}"


_TASKS = (
    ("delete", "erase", "get rid of"),
    ("install", "set up", "add"),
    ("open", "view", "look at"),
    ("rename", "change the name of", "give a new name to"),
    ("print", "put on paper", "make a paper copy of"),
    ("share", "send", "forward"),
)
_FILES = "a folder,a printer,an app,my photos,a spreadsheet,an email,a password,the browser,a video"


def duplicate(draw: Draw, label: int) -> tuple[str, ...]:
    """Two questions about a computer; label 0 changes the wish."""
    thing, wish = draw.word(_FILES), draw.one(_TASKS)
    first = draw.one(wish)
    second = draw.other(wish, first) if label else draw.one(draw.other(_TASKS, wish))
    return f"how do i {first} {thing} ?", f"what is the best way to {second} {thing} ?"


_SCENE = (
    "a goalkeeper,a swimmer,two cyclists,a young skater,a tennis player,three runners,an archer,a boxer,a rower",
    "throws,catches,kicks,drops,chases,waves at,points at,polishes,lifts",
    "a red ball,a helmet,the trophy,a whistle,a towel,the flag,a racket,a medal,the referee",
    "in the stadium,by the pool,on the track,on the beach,in the gym,at the lake,in the park,on the court,by the net",
    "at sunrise,in the snow,during a storm,before the final,at night,in july,after the match,on sunday,in the heat",
)


def similarity(draw: Draw, label: int) -> tuple[str, ...]:
    """Two sports scenes that share ``label`` of their five parts."""
    first = [draw.word(part) for part in _SCENE]
    kept = draw.shuffled(range(5))[:label]
    second = [word if place in kept else draw.other_word(_SCENE[place], word) for place, word in enumerate(first)]
    return " ".join(first), " ".join(second)
