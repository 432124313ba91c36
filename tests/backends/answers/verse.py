"""Songs and poems that say much of what they say again: refrains, verses with one new word, songs that grow or count down."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
DAYS = [
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
]
GIFTS = (
    "a partridge in a pear tree",
    "two turtle doves",
    "three French hens",
    "four calling birds",
    "five golden rings",
    "six geese a-laying",
    "seven swans a-swimming",
    "eight maids a-milking",
    "nine ladies dancing",
    "ten lords a-leaping",
    "eleven pipers piping",
    "twelve drummers drumming",
)
SOUNDS = {
    "cow": "moo",
    "pig": "oink",
    "duck": "quack",
    "horse": "neigh",
    "sheep": "baa",
    "dog": "woof",
    "cat": "meow",
}
BUS = {
    "wheels": "go round and round",
    "wipers": "go swish, swish, swish",
    "horn": "goes beep, beep, beep",
    "doors": "go open and shut",
    "driver": "says, move on back",
    "babies": "cry, waa, waa, waa",
    "people": "go up and down",
    "coins": "go clink, clink, clink",
}
HAPPY = {
    "clap your hands": "clap clap",
    "stamp your feet": "stamp stamp",
    "shout hooray": "hoo-ray",
    "nod your head": "nod nod",
    "turn around": "turn turn",
}
JACK = (
    ("house that Jack built", ""),
    ("malt", "lay in"),
    ("rat", "ate"),
    ("cat", "killed"),
    ("dog", "worried"),
    ("cow with the crumpled horn", "tossed"),
    ("maiden all forlorn", "milked"),
    ("man all tattered and torn", "kissed"),
    ("priest all shaven and shorn", "married"),
    ("cock that crowed in the morn", "woke"),
)
SAILOR = (
    "Put him in the long boat till he's sober",
    "Pull out the plug and wet him all over",
    "Shave his belly with a rusty razor",
    "Put him in the scuppers with a hosepipe on him",
    "Give him a taste of the bosun's rope-end",
    "Stick on his back a mustard plaster",
)
MOUNTAIN = (
    "coming round the mountain when she comes",
    "driving six white horses when she comes",
    "wearing pink pyjamas when she comes",
    "sleeping in the bedroom when she comes",
    "bringing all her cousins when she comes",
)
BRIDGE = ("wood and clay", "bricks and mortar", "iron and steel", "silver and gold", "stone so strong")
WASHED = ("wash away", "will not stay", "bend and bow", "be stolen away", "last for aye")
REFRAINS = (
    "Oh, the river runs down to the sea, to the sea,\nand it carries my heart back to thee.",
    "Sing high, sing low, and let the music go,\nthe night is young, the lights are all aglow.",
    "We'll meet again under the old oak tree,\nwhere the summer was kind to you and me.",
    "Home, home, take me home, over the hills where I used to roam,\nover the hills and home.",
)
THEMES = (
    "rain",
    "winter",
    "harvest",
    "lantern",
    "railway",
    "island",
    "garden",
    "harbour",
    "orchard",
    "shepherd",
)
SEEN = ("a swallow", "a candle", "the moon", "an old friend", "a ship", "the snow")


def refrains() -> Iterator[str]:
    """Songs of four to eight verses, the same two lines behind each."""
    for number, theme in enumerate(THEMES):
        refrain = REFRAINS[number % len(REFRAINS)]
        verses = (
            f"I walked by the {theme} with {seen} in sight,\nthe {NUMBERS[at + number % 3]} of us stayed there all the "
            f"{'night' if at % 2 else 'light'},\nand {SEEN[-at - 1]} was the {theme}'s delight."
            for at, seen in enumerate(SEEN[: 4 + number % 3])
        )
        yield f"# Song of the {theme}\n\n" + "\n\n".join(f"{verse}\n\n*{refrain}*" for verse in verses)


def nursery() -> Iterator[str]:
    """Traditional songs whose verses differ in a word or two."""
    yield "\n\n".join(
        f"On the {day} day of Christmas\nmy true love gave to me\n"
        + ",\n".join(reversed(GIFTS[: at + 1]))
        + "."
        for at, day in enumerate(DAYS)
    )
    yield "\n\n".join(
        f"Old MacDonald had a farm, E-I-E-I-O.\nAnd on that farm he had a {animal}, E-I-E-I-O.\n"
        f"With a {sound}-{sound} here, and a {sound}-{sound} there,\nHere a {sound}, there a {sound}, everywhere a "
        f"{sound}-{sound}.\nOld MacDonald had a farm, E-I-E-I-O."
        for animal, sound in SOUNDS.items()
    )
    yield "\n\n".join(
        f"The {who} on the bus {what},\n{what.partition(' ')[2]},\n{what.partition(' ')[2]}.\nThe {who} on the bus "
        f"{what},\nall through the town."
        for who, what in BUS.items()
    )
    yield "\n\n".join(
        f"If you're happy and you know it, {what}! ({sound})\nIf you're happy and you know it, {what}! ({sound})\n"
        f"If you're happy and you know it, then your face will surely show it,\n"
        f"If you're happy and you know it, {what}! ({sound})"
        for what, sound in HAPPY.items()
    )
    yield "\n\n".join(_house(num) for num in range(1, len(JACK) + 1))
    yield "\n\n".join(
        f"{line},\n{line},\n{line},\nearly in the morning.\n\nWay, hay, and up she rises,\nway, hay, and up she rises,\n"
        "way, hay, and up she rises,\nearly in the morning."
        for line in SAILOR
    )
    yield "\n\n".join(
        f"She'll be {line},\nshe'll be {line},\nshe'll be {line.removesuffix(' when she comes')},\n"
        f"she'll be {line.removesuffix(' when she comes')},\nshe'll be {line}."
        for line in MOUNTAIN
    )
    yield "\n\n".join(
        f"Build it up with {made},\n{made}, {made},\nbuild it up with {made},\nmy fair lady.\n\n{made.capitalize()} will "
        f"{gone},\n{gone}, {gone},\n{made} will {gone},\nmy fair lady."
        for made, gone in zip(BRIDGE, WASHED, strict=True)
    )
    yield (
        "Row, row, row your boat,\ngently down the stream.\nMerrily, merrily, merrily, merrily,\nlife is but a dream.\n\n"
        * 3
    )
    yield (
        "Are you sleeping, are you sleeping,\nBrother John, Brother John?\nMorning bells are ringing,\nding, dang, dong.\n\n"
        * 3
    )


def countdowns() -> Iterator[str]:
    """Songs that count down, in words or in figures."""
    tens = [word.capitalize() for word in reversed(NUMBERS[:10])]
    for thing, place, fate in (
        ("green bottles", "hanging on the wall", "accidentally fall"),
        ("fat sausages", "sizzling in the pan", "go pop and go bang"),
        ("speckled frogs", "sitting on a log", "jump into the pool"),
        ("little ducks", "swimming in a row", "swim over the hill"),
        ("red balloons", "floating in the sky", "drift out of my eye"),
    ):
        yield "\n\n".join(
            f"{word} {thing}, {place},\n{word} {thing}, {place},\nand if one should {fate},\nthere'll be "
            f"{after.lower()} {thing}, {place}."
            for word, after in zip(tens, [*tens[1:], "no"], strict=True)
        )
    for most, drink in ((99, "beer"), (60, "milk"), (50, "lemonade"), (40, "tea"), (30, "root beer")):
        yield "\n\n".join(
            f"{n} bottles of {drink} on the wall, {n} bottles of {drink}.\nTake one down and pass it around, "
            f"{n - 1} bottles of {drink} on the wall."
            for n in range(most, max(0, most - 40), -1)
        )


def poems() -> Iterator[str]:
    """Anaphora, pantoums and litanies: each line begins, or each verse ends, as the one before did."""
    for number, theme in enumerate(THEMES):
        lines = [
            f"the {theme} {what}" for what in ("wakes", "waits", "listens", "answers", "remembers", "lets go")
        ]
        if number % 3 == 0:
            yield "\n".join(
                f"I am here when {line},\nI am here though {seen} is gone."
                for line, seen in zip(lines, SEEN, strict=True)
            )
        elif number % 3 == 1:  # a pantoum: the second and fourth lines of a verse come back in the next
            said = [f"{line}, and {seen} comes by" for line, seen in zip(lines, SEEN, strict=True)]
            yield "\n\n".join(
                "\n".join((a, b, c, d))
                for a, b, c, d in zip(said, said[1:], said[1:] + said[:1], said[2:], strict=False)
            )
        else:
            yield "\n".join(
                f"From {seen} and from all that {line}, deliver us.\nHear us, we ask you."
                for line, seen in zip(lines * 2, (*SEEN, *THEMES[:6]), strict=True)
            )


def _house(num: int) -> str:
    things = list(reversed(JACK[:num]))
    lines = [f"This is the {things[0][0]}"]
    lines += [f"that {does} the {thing}" for (_, does), (thing, _) in pairwise(things)]
    return "\n".join(lines) + "."
