"""Tables for redraft.training.instructions, written by hand."""

from __future__ import annotations

from redraft.training.damage_words import words

DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February April June July August September October November December")
CITIES = (
    *(
        "San Jose",
        "San Francisco",
        "Oakland",
        "Palo Alto",
        "Berkeley",
        "New York",
        "Los Angeles",
        "San Diego",
    ),
    *(
        "Seattle",
        "Portland",
        "Chicago",
        "Sacramento",
        "Fremont",
        "Santa Rosa",
        "Napa",
        "Livermore",
        "Concord",
    ),
    *(
        "Las Vegas",
        "Phoenix",
        "Atlanta",
        "Philadelphia",
        "Washington",
        "Vancouver",
        "Toronto",
        "London",
        "Paris",
    ),
    *("Walnut Creek", "Hayward", "Mountain View", "Fresno", "Anaheim", "Long Beach", "Petaluma", "Sunnyvale"),
)
NAMES = words("Anna Ben Carol David Emma Frank Grace Helen Jack Kate Laura Mark Nina Peter Rose Sam Tom")
FOODS = words("Italian Mexican Chinese Indian Thai Japanese American French Greek Korean Vietnamese")
NUMBERS = words("one two three four five six seven eight")
WORDS = words(
    "good nice cheap small large early late quiet table room house movie song city hotel restaurant ticket flight "
    "dinner lunch evening morning friend doctor music water market river garden window school simple happy green "
    "blue first second other find book look call order visit open"
)

# name: (wordings for training, wordings for evaluation only)
WORDINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "change": (
        (
            *("Change {x} to {y}.", "change {x} to {y}", "Replace {x} with {y}.", "replace {x} by {y}"),
            *("Make it {y} instead of {x}.", "Use {y} instead of {x}.", "Please change {x} to {y}."),
            *("{x} should be {y}.", "Change {x} into {y}.", "It's {y}, not {x}."),
        ),
        ("Swap {x} for {y}.", "Put {y} where it says {x}.", "Not {x} but {y}."),
    ),
    "detail_day": (
        ("Make it {y}.", "The day should be {y}.", "Move it to {y}.", "Change the day to {y}."),
        ("It should be on {y}.", "Set the day to {y}."),
    ),
    "detail_time": (
        ("Make it {y}.", "The time should be {y}.", "Move it to {y}.", "Change the time to {y}."),
        ("It should be at {y}.", "Set the time to {y}."),
    ),
    "detail_city": (
        ("Make it {y}.", "The city should be {y}.", "Change the city to {y}.", "In {y}, please."),
        ("It should be in {y}.", "Set the city to {y}."),
    ),
    "detail_number": (
        ("Make it for {y}.", "The number should be {y}.", "Change the number to {y}.", "We are {y}."),
        ("It should be for {y}.", "Set the number to {y}."),
    ),
    "detail_food": (
        ("Make it {y}.", "{y} food, please.", "Change the food to {y}."),
        ("It should be {y} food.",),
    ),
    "detail_month": (("Make it {y}.", "Change the month to {y}."), ("It should be in {y}.",)),
    "detail_price": (
        ("Make it {y}.", "Change the price to {y}.", "The price is {y}."),
        ("It should cost {y}.",),
    ),
    "remove": (
        ("Remove the word {x}.", "Delete {x}.", "Take out {x}.", "remove {x}", "Leave out {x}."),
        ("Drop the word {x}.", "Write it without {x}."),
    ),
    "polite": (
        (
            *(
                "Make it polite.",
                "Make it more polite.",
                "make this polite",
                "Be more polite.",
                "Say it politely.",
            ),
            *("Rewrite this politely.", "Please make it polite."),
        ),
        ("Make this sound polite.", "Write it in a more polite way."),
    ),
    "casual": (
        (
            "Make it less formal.",
            "Make it casual.",
            "Use contractions.",
            "make it informal",
            "Be more relaxed.",
        ),
        ("Make this sound less formal.", "Write it more casually."),
    ),
    "formal": (
        ("Make it formal.", "Make it more formal.", "Don't use contractions.", "Be more formal."),
        ("Make this sound more formal.", "Write it formally."),
    ),
    "past": (
        ("Put it in the past tense.", "Use the past tense.", "Change it to past tense.", "past tense"),
        ("Write it in the past tense.", "Make it past."),
    ),
    "present": (
        (
            "Put it in the present tense.",
            "Use the present tense.",
            "Change it to present tense.",
            "present tense",
        ),
        ("Write it in the present tense.", "Make it present."),
    ),
    "upper": (
        ("Write it in capitals.", "Use capital letters.", "upper case", "Make it upper case."),
        ("Put it in capital letters.", "All caps."),
    ),
    "lower": (
        ("Write it in small letters.", "Use lower case.", "lower case", "Make it lower case."),
        ("Put it in small letters.", "No capitals."),
    ),
    "please": (("Add please.", "Say please.", "Add please at the end."), ("End with please.",)),
    "first_off": (
        ("Remove the first sentence.", "Delete the first sentence.", "Take out the first sentence."),
        ("Drop the first sentence.",),
    ),
    "last_off": (
        ("Remove the last sentence.", "Delete the last sentence.", "Take out the last sentence."),
        ("Drop the last sentence.",),
    ),
    "split": (
        (
            "Split it into two sentences.",
            "Make it two sentences.",
            "Split the sentence.",
            "Use shorter sentences.",
        ),
        ("Write it as two sentences.", "Break it up."),
    ),
    "join": (
        ("Join the sentences.", "Make it one sentence.", "Write it as one sentence."),
        ("Put it in one sentence.",),
    ),
    "mistakes": (
        (
            *(
                "Correct the mistakes.",
                "Fix the mistakes.",
                "Correct it.",
                "Fix the errors.",
                "Proofread this.",
            ),
            *("Fix the spelling and grammar.", "correct the mistakes", "Please correct the errors."),
        ),
        ("Correct the errors.", "Mend the mistakes.", "Check the spelling and grammar."),
    ),
    "rename": (
        ("Rename {x} to {y}.", "rename {x} to {y}", "Rename the variable {x} to {y}.", "Call {x} {y}."),
        ("Give {x} the name {y}.", "{x} should be called {y}."),
    ),
    "brackets": (
        ("Fix the brackets.", "fix the brackets", "Correct the brackets.", "Fix the parentheses."),
        ("Balance the brackets.", "Mend the brackets."),
    ),
}

POLITE = (
    ("I want", "I would like"),
    ("I need", "I would need"),
    ("Can you", "Could you please"),
    ("can you", "could you please"),
    ("Will you", "Would you please"),
    ("Find me", "Could you please find me"),
    ("Give me", "Please give me"),
    ("Tell me", "Please tell me"),
    ("Show me", "Please show me"),
    ("Book", "Please book"),
    ("Make it", "Please make it"),
    ("What do you want", "What would you like"),
    ("do you want", "would you like"),
    ("Do you want", "Would you like"),
    ("Thanks", "Thank you very much"),
    ("Hi", "Hello"),
    ("Hey", "Hello"),
    ("Which", "May I ask which"),
    ("What time", "May I ask what time"),
    ("Yes", "Yes, please"),
    ("No", "No, thank you"),
    ("OK", "Very well"),
    ("Okay", "Very well"),
)
_CONTRACTIONS = (
    *(("I am", "I'm"), ("I will", "I'll"), ("I would", "I'd"), ("I have", "I've"), ("do not", "don't")),
    *(
        ("does not", "doesn't"),
        ("It is", "It's"),
        ("it is", "it's"),
        ("That is", "That's"),
        ("that is", "that's"),
    ),
    *(("There is", "There's"), ("there is", "there's"), ("What is", "What's"), ("what is", "what's")),
    *(
        ("cannot", "can't"),
        ("is not", "isn't"),
        ("are not", "aren't"),
        ("will not", "won't"),
        ("We will", "We'll"),
    ),
    *(("they are", "they're"), ("They are", "They're"), ("you are", "you're"), ("You are", "You're")),
    *(("They have", "They've"), ("You have", "You've"), ("did not", "didn't"), ("Let us", "Let's")),
)
CASUAL = (*_CONTRACTIONS, ("Thank you", "Thanks"), ("Hello", "Hi"), ("Goodbye", "Bye"), ("Certainly", "Sure"))
FORMAL = (
    *((short, long) for long, short in _CONTRACTIONS),
    *(("Thanks", "Thank you"), ("Hi", "Hello"), ("Hey", "Hello"), ("Bye", "Goodbye"), ("Sure", "Certainly")),
    *(("OK", "Very well"), ("Okay", "Very well"), ("Yeah", "Yes"), ("yeah", "yes"), ("Yep", "Yes")),
)
_VERBS = (
    *(("want", "wanted"), ("need", "needed"), ("have", "had"), ("like", "liked"), ("think", "thought")),
    *(
        ("know", "knew"),
        ("am", "was"),
        ("will", "would"),
        ("can", "could"),
        ("find", "found"),
        ("see", "saw"),
    ),
)
_SUBJECTS = ("I", "We", "we", "They", "they")
TENSES = (
    *(
        (f"{s} {a}", f"{s} {b if a != 'am' else 'was'}")
        for s in _SUBJECTS
        for a, b in _VERBS
        if a != "am" or s == "I"
    ),
    *((f"{s} are", f"{s} were") for s in ("We", "we", "They", "they", "You", "you", "There", "there")),
    *(
        (f"{s} is", f"{s} was")
        for s in ("It", "it", "There", "there", "This", "He", "he", "She", "she", "name")
    ),
    *((f"{s} has", f"{s} had") for s in ("It", "it", "He", "he", "She", "she")),
    *((f"{s} costs", f"{s} cost") for s in ("It", "it")),
    *((f"{s} starts", f"{s} started") for s in ("It", "it")),
    *(("number is", "number was"), ("address is", "address was"), ("price is", "price was"), ("Is", "Was")),
    *(("Do", "Did"), ("Does", "Did"), ("Are", "Were")),
)
PAST = TENSES
PRESENT = tuple((past, now) for now, past in TENSES if now not in ("Does", "It costs", "it costs"))

IDENTIFIERS = words(
    "total count price name items index value result data size x y i n key text line item sum max min rate cost "
    "user day time seat row list score limit start end"
)
CODE = (
    "{a} = {a} + {b}",
    "{a} = {b}[{c}]",
    "{a} += {b} * {n}",
    "for {a} in {b}:\n    print({a})",
    "if {a} > {n}:\n    {b} = {a}",
    "def {a}({b}, {c}):\n    return {b} + {c}",
    "{a} = max({b}, {c})",
    "print({a}, {b})",
    "{a} = [{b}, {c}, {n}]",
    "return ({a} + {b}) / {c}",
    "{a} = len({b}) - {n}",
    "{a}.append({b}[{n}])",
    "while {a} < len({b}):\n    {a} += 1",
    "{a} = {{'{b}': {c}}}",
    "{a} = sum({b}) / len({b})",
)
