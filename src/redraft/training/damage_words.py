"""Tables for redraft.training.damage, written by hand for everyday English."""

from __future__ import annotations

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _keys_beside() -> dict[str, str]:
    beside = {}
    for r, row in enumerate(ROWS):
        for c, key in enumerate(row):
            near = [(r, c - 1), (r, c + 1), (r - 1, c), (r - 1, c + 1), (r + 1, c - 1), (r + 1, c)]
            beside[key] = "".join(ROWS[i][j] for i, j in near if 0 <= i < 3 and 0 <= j < len(ROWS[i]))
    return beside


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _each_other(groups: str) -> dict[str, list[str]]:
    """Groups are divided by |; each word of one may be taken for each other one."""
    table: dict[str, list[str]] = {}
    for group in groups.split("|"):
        members = group.split()
        for word in members:
            table.setdefault(word, []).extend(w for w in members if w != word)
    return table


KEYS_BESIDE = _keys_beside()

SOUNDS = (
    *(("ei", "ie"), ("ie", "ei"), ("ph", "f"), ("ght", "t"), ("tion", "sion"), ("able", "ible")),
    *(("ence", "ance"), ("ance", "ence"), ("ll", "l"), ("ss", "s"), ("tt", "t"), ("mm", "m"), ("rr", "r")),
    *(("nn", "n"), ("cc", "c"), ("pp", "p"), ("ee", "ea"), ("ea", "ee"), ("ou", "u"), ("ck", "k")),
    *(("c", "s"), ("s", "c"), ("er", "or"), ("or", "er"), ("ly", "lly"), ("y", "ie"), ("ai", "ay")),
)

MISSPELLINGS = {
    right: wrong.split()
    for right, wrong in (
        line.split(": ")
        for line in """
restaurant: restaraunt resturant restaurent
restaurants: restaraunts resturants
reservation: reservaton resevation reservasion
reserve: resereve reserv
tomorrow: tommorow tommorrow tomorow
address: adress addres
available: avaliable availible
appointment: apointment appointmant
confirm: comfirm confrim
please: plese pleas
thank: thnak tank
thanks: thnaks thanx
would: woud wuold
could: coud cuold
number: numer nubmer
phone: fone phoen
people: poeple peple
their: thier
there: ther
which: wich whcih
because: becuase becouse
receive: recieve
definitely: definately definitly
separate: seperate
successfully: succesfully successfuly sucessfully
successful: succesful sucessful
unfortunately: unfortunatly unfortunatley
different: diffrent differant
favorite: favourit favorit
necessary: neccessary necesary
tonight: tonite tonigt
evening: evning evenning
morning: mornning moring
afternoon: afternon aftenoon
ticket: tiket tickt
tickets: tikets tickest
playing: plaing palying
movie: moive movei
theater: theator theatr
really: realy relly
schedule: schedul shedule
interested: intrested interrested
interesting: intresting interisting
information: infomation informaton
located: locatd loacted
location: locaton loaction
expensive: expencive expensiv
moderate: moderat modarate
something: somthing somehting
anything: anyting anythng
everything: everthing everyting
booking: boking bookng
booked: bookd boked
looking: loking lookng
great: grate graet
right: rigth
good: goood
perfect: perfact perfekt
serve: sevre
alcohol: alchohol alcohal
vegetarian: vegitarian vegeterian
music: musik muisc
weather: wether weathr
flight: fligt flihgt
flights: fligts flihgts
account: acount acconut
transfer: tranfer transfar
balance: balence ballance
checking: cheking chekcing
savings: savngs saveings
doctor: docter
dentist: dentest
hotel: hotle hottel
apartment: appartment apartmant
bedroom: bedrom
price: prise pirce
welcome: welcom wellcome
assist: asist
assistance: asistance assistence
further: furthur
wonderful: wonderfull wonderfl
awesome: awsome
""".strip().splitlines()
    )
}

HOMOPHONES = _each_other(
    "their there|to too two|then than|here hear|its it's|your you're|for four|buy by|know no|right write|our are|"
    "where wear|which witch|would wood|whole hole|week weak|see sea|meet meat|sure shore|one won|"
    "weather whether|through threw|new knew|hour our|fare fair|plain plane|piece peace|affect effect|"
    "accept except|of off|lose loose|quite quiet|passed past"
)
CONTRACTED_HOMOPHONES = {
    ("it", "'s"): "its",
    ("you", "'re"): "your",
    ("they", "'re"): "their",
    ("we", "'re"): "were",
    ("who", "'s"): "whose",
    ("that", "'s"): "thats",
}

LITTLE = words(
    "a an the to of in on at for with from by is are was be been do does did have has had will would can could "
    "should i you it me my your their there that and or as"
)
SURPLUS = words("a the to of in on at for is it be and do that")

AGREEMENT = _each_other(
    "is are|was were|has have|does do|wants want|needs need|likes like|serves serve|plays play|starts start|"
    "takes take|costs cost|offers offer|gets get|goes go|makes make|seems seem|sounds sound|works work|"
    "looks look|leaves leave|arrives arrive|comes come|happens happen|this these|that those|am is"
)
TENSES = _each_other(
    "find found finding|book booked booking|reserve reserved reserving|go went going gone|make made making|"
    "take took taking taken|buy bought buying|see saw seen|get got getting|give gave giving given|"
    "look looked looking|need needed|want wanted|help helped helping|search searched searching|"
    "confirm confirmed confirming|play played playing|start started starting|know knew known|"
    "schedule scheduled scheduling|transfer transferred transferring|leave left leaving|serve served serving|"
    "locate located|come came coming|do did doing done|have had having|tell told telling|show showed shown|"
    "call called calling|eat ate eating|try tried trying|think thought thinking|be been being|like liked|"
    "is was|are were|check checked checking|watch watched watching|travel traveling|"
    "rent rented renting|add added adding|cost costed|stay stayed staying|visit visited visiting"
)
ARTICLES = {"a": ["an"], "an": ["a"]}
PREPOSITIONS = _each_other("in on at|for to of|from of|with by|into in|about of")
PRONOUNS = _each_other("i me my|we us our|they them their|he him his|she her|you your")
_NOUNS = words(
    "restaurant ticket table seat person place time number movie flight hotel room day night show song event "
    "option house apartment doctor dentist salon theater date review star rating passenger bag car "
    "bedroom dollar account appointment reservation"
)
NUMBERS = _each_other(
    "|".join(("city cities", "bus buses", "people peoples", *(f"{noun} {noun}s" for noun in _NOUNS)))
)
