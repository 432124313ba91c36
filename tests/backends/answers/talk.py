"""Lists, lessons, letters and talk whose sentences have one frame."""

from __future__ import annotations

from collections.abc import Iterator

WORDS = {
    "house": ("maison", "casa", "Haus"), "water": ("eau", "agua", "Wasser"), "bread": ("pain", "pan", "Brot"),
    "book": ("livre", "libro", "Buch"), "tree": ("arbre", "árbol", "Baum"), "dog": ("chien", "perro", "Hund"),
    "cat": ("chat", "gato", "Katze"), "sun": ("soleil", "sol", "Sonne"), "moon": ("lune", "luna", "Mond"),
    "street": ("rue", "calle", "Straße"), "friend": ("ami", "amigo", "Freund"), "day": ("jour", "día", "Tag"),
    "night": ("nuit", "noche", "Nacht"), "hand": ("main", "mano", "Hand"), "eye": ("œil", "ojo", "Auge"),
}  # fmt: skip
VERBS = ("talk", "walk", "play", "work", "cook", "paint", "help", "listen", "jump", "travel")
PRONOUNS = ("I", "you", "we", "they")
FRUITS = [
    "apple",
    "banana",
    "cherry",
    "date",
    "fig",
    "grape",
    "lemon",
    "mango",
    "orange",
    "papaya",
    "peach",
    "pear",
    "plum",
    "quince",
]
CHESS = [
    "e4",
    "e5",
    "Nf3",
    "Nc6",
    "Bb5",
    "a6",
    "Ba4",
    "Nf6",
    "O-O",
    "Be7",
    "Re1",
    "b5",
    "Bb3",
    "d6",
    "c3",
    "O-O",
    "h3",
    "Nb8",
    "d4",
    "Nbd7",
    "Nbd2",
    "Bb7",
    "Bc2",
    "Re8",
    "Nf1",
    "Bf8",
    "Ng3",
    "g6",
    "a4",
    "c5",
]
MUSCLES = ["chest", "back", "legs", "shoulders", "arms", "core", "calves"]
SCALE = ("do", "re", "mi", "fa", "sol", "la", "ti", "do")
WEEK = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
JOKES = {
    "Lettuce": "Lettuce in, it's cold out here",
    "Boo": "Don't cry, it's only a joke",
    "Cash": "No thanks, I prefer peanuts",
    "Olive": "Olive you",
    "Ice cream": "Ice cream every time I see a ghost",
    "Harry": "Harry up and open",
    "Tank": "You're welcome",
    "Nana": "Nana your business",
}
SQUARES = {
    "Why is the sky blue?": "Because air scatters blue light most",
    "Why is grass green?": "Because chlorophyll takes the other colours",
    "Why is snow white?": "Because it scatters all colours alike",
    "Why is blood red?": "Because of the iron in it",
    "Why is the sea salty?": "Because rivers bring salts, and only water leaves",
    "Why is iron brown?": "Because it rusts",
}


def translations() -> Iterator[str]:
    """Texts side by side, vocabularies, conjugations."""
    yield "| English | French | Spanish | German |\n|---|---|---|---|\n" + "\n".join(
        f"| the {w} | {' | '.join(t)} |" for w, t in WORDS.items()
    )
    yield "\n".join(
        f"- **{word}**: French *{f}*, Spanish *{s}*, German *{g}*" for word, (f, s, g) in WORDS.items()
    )
    yield "\n\n".join(
        f"English: I see the {w}.\nSpanish: Veo {s}.\nGerman: Ich sehe {g}." for w, (_, s, g) in WORDS.items()
    )
    yield "\n\n".join(
        f"**to {verb}**\n" + "\n".join(f"- {p} {verb}, {p} {verb}ed, {p} have {verb}ed" for p in PRONOUNS)
        for verb in VERBS
    )
    yield "\n".join(f'How do you say "{w}" in French? You say "{f}".' for w, (f, _, _) in WORDS.items())
    yield "\n".join(f'{w} /{w}/ noun. plural: {w}s. "The {w} is here."' for w in WORDS)
    yield "\n".join(f"我喜欢{c}，因为{c}很好吃。" for c in "梨桃李杏枣橙柚橘莓蕉")
    yield "\n".join(f"これは{c}です。あれも{c}ですか。はい、{c}です。" for c in "犬猫鳥魚馬牛羊本机窓")
    yield "\n".join(
        f"Я люблю {c}, ты любишь {c}, мы любим {c}."
        for c in ("чай", "хлеб", "лето", "зиму", "море", "лес", "дом", "сад")
    )
    yield "\n\n".join(
        f"{number}. {w.capitalize()}\n   - a) {f}\n   - b) {s}\n   - c) {g}\n   - Answer: b"
        for number, (w, (f, s, g)) in enumerate(WORDS.items(), 1)
    )


def lists() -> Iterator[str]:
    """Numbered and bulleted lists with a frame."""
    yield "\n".join(f"- The {f} is a fruit. The {f} tastes good in a pie." for f in FRUITS)
    yield "\n".join(
        f"{n}. **{f.capitalize()}**: rich in vitamins and fibre, and easy to eat as a snack."
        for n, f in enumerate(FRUITS, 1)
    )
    yield "\n".join(
        f"{n}. Wash the {f}.\n{n}. Peel the {f}.\n{n}. Cut the {f} into small pieces."
        for n, f in enumerate(FRUITS[:10], 1)
    )
    yield "\n\n".join(
        f"### {day}\n"
        + "\n".join(
            f"- {exercise}: 3 sets of 12 repetitions"
            for exercise in ("Squats", "Push-ups", "Lunges", f"{muscle.capitalize()} stretch")
        )
        for day, muscle in zip(WEEK, MUSCLES, strict=True)
    )
    yield "\n".join(f"- [ ] Buy {f}s\n- [ ] Wash {f}s" for f in FRUITS)
    yield "\n".join(
        f"{n}. What do you like about {f}s, and why do you like it?" for n, f in enumerate(FRUITS, 1)
    )
    yield "\n".join(
        f"{letter} is for {letter}{w}"
        for letter, w in zip(
            "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
            [
                "pple",
                "all",
                "at",
                "og",
                "lephant",
                "ox",
                "oat",
                "at",
                "ce",
                "ug",
                "ite",
                "ion",
                "oon",
                "est",
                "range",
                "ig",
                "ueen",
                "at",
                "un",
                "ree",
                "mbrella",
                "an",
                "hale",
                "-ray",
                "ak",
                "ebra",
            ],
            strict=True,
        )
    )
    yield "\n".join(
        f"Day {n}: run {n} minutes, walk {30 - n} minutes, stretch for 5 minutes." for n in range(1, 29)
    )
    yield "\n".join(
        f"Step {n}: Add a cup of {f} to the bowl and stir it well." for n, f in enumerate(FRUITS, 1)
    )
    yield "\n".join("hello" for _ in range(50))


def quizzes() -> Iterator[str]:
    """Questions with the same choices, grids of yes and no, flash cards."""
    for number in range(10):
        frame = (
            "True or false: {0} grow on trees.\nA) True\nB) False\nAnswer: {1}",
            "Q: Are {0} sweet?\nA: {2}, {0} are {3}sweet.",
        )[number % 2]
        yield "\n\n".join(
            f"{at}. "
            + frame.format(f + "s", "AB"[(at + number) % 2], ("Yes", "No")[at % 2], ("", "not ")[at % 2])
            for at, f in enumerate((*FRUITS, *WORDS)[: 12 + number], 1)
        )


def games() -> Iterator[str]:
    """Chess moves, one a line or all in one, with and without remarks; drills for music and typing."""
    moves = [f"{n + 1}. {CHESS[2 * n]} {CHESS[2 * n + 1]}" for n in range(len(CHESS) // 2)]
    yield " ".join(moves)
    yield "\n".join(moves)
    yield "\n".join(f"{m}: White develops a piece, and Black answers." for m in moves)
    yield "\n".join(
        f"Move {n}: White plays {a}. Black plays {b}."
        for n, (a, b) in enumerate(zip(CHESS[::2], CHESS[1::2], strict=True), 1)
    )
    yield " ".join(f"{n}. Ng{1 if n % 2 else 3} Ng{8 if n % 2 else 6}" for n in range(1, 20)) + " ½-½"
    yield "\n".join("asdf jkl; asdf jkl; " + w for w in WORDS)
    yield "\n".join(
        f"| {c} | {c} | {d} | {c} |"
        for c, d in zip(("C", "Am", "F", "G") * 5, ("G", "Em", "C", "D") * 5, strict=True)
    )
    yield "\n".join(
        f"Player {n % 2 + 1} rolls a {n * 5 % 6 + 1} and moves to square {n * 4}." for n in range(1, 26)
    )
    yield "\n".join(
        f"Round {n}: Rock beats scissors. Score: you {n // 2}, me {n - n // 2}." for n in range(1, 19)
    )
    yield "\n".join(f"{' '.join(SCALE[n % 4 :])} | {' '.join(SCALE[::-1][n % 4 :])}" for n in range(10))


def dialogues() -> Iterator[str]:
    """Talk in turns whose first lines are always the same."""
    yield "\n\n".join(
        f"Knock, knock.\nWho's there?\n{who}.\n{who} who?\n{line}!" for who, line in JOKES.items()
    )
    yield "\n".join(
        f"Child: {q}\nParent: {a}.\nChild: But why?\nParent: That is how it is. Ask me another one."
        for q, a in SQUARES.items()
    )
    yield "\n\n".join(
        f'**Teacher:** What is the French for "{w}"?\n**Student:** It is "{f}".\n**Teacher:** Very good!'
        for w, (f, _, _) in WORDS.items()
    )
    yield "\n".join(
        f"Customer: Do you have {f}s?\nClerk: Yes, we have {f}s.\nCustomer: I'll take {n} {f}s, please."
        for n, f in enumerate(FRUITS, 2)
    )
    yield "\n\n".join(f"JULIET. Is it the {w}?\nROMEO. It is the {w}, my love, it is the {w}." for w in WORDS)
    yield "\n".join(f"> {q}\n\n{a}.\n" for q, a in SQUARES.items()) * 2
    yield "\n".join(
        f"Interviewer: Tell me about your {m}.\nCoach: We train the {m} on {d}."
        for m, d in zip(MUSCLES, WEEK, strict=True)
    )
    yield "\n".join(f"User {n}: +1\nUser {n + 1}: +1, thanks!" for n in range(1, 40, 2))
    yield "\n".join(
        f"[{9 + n // 6:02}:{n % 6}0] anna: do we need {f}s?\n[{9 + n // 6:02}:{n % 6}5] ben: {'ok, I buy some' if n % 2 else 'no, we have some'}"
        for n, f in enumerate((*FRUITS, *WORDS))
    )
    yield "\n".join(
        f'"Is this {w} yours?" asked the king.\n"No, sire," said the miller, "that {w} is not mine."'
        for w in WORDS
    )


def letters() -> Iterator[str]:
    """A draft, and what became of it: nearly all of it stands there twice; the same letter to several people."""
    for number, name in enumerate(("Anna", "Ben", "Clara", "David", "Emma")):
        body = (
            f"Dear {name},\n\nthank you for the {FRUITS[number]}s that you sent. We ate them in the garden with the children, "
            f"and everybody asked where they grew. I would love to visit you in {WEEK[number]}'s week, if that suits you. "
            "Please tell me which train to take and whether I can bring anything.\n\nWith love,\nMartha"
        )
        yield f"Your draft:\n\n{body}\n\nCorrected:\n\n{body.replace('I would love', 'I should like')}"
        yield "\n\n---\n\n".join(
            body.replace(name, other) for other in (name, "Frank", "Grace")[: 2 + number % 2]
        )


def lessons() -> Iterator[str]:
    """Proofs and sums step by step, each step in the frame of the one before; drills; headings that come again."""
    for n in range(2, 7):
        yield "\n".join(
            f"Subtract {n} from both sides: {n * (20 - k)} - {n} = {n * (19 - k)}. So {n * (19 - k)} is left."
            for k in range(19)
        )
        yield "\n\n".join(
            f"## Chapter {k}\n\n### Summary\n\nIn chapter {k} we meet the {w}.\n\n### Questions\n\n1. Who is the {w}?\n2. What does the {w} want?"
            for k, w in enumerate(list(WORDS)[: 4 + n], 1)
        )
