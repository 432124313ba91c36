"""Tables, data, code and drawings, whose lines are much alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from textwrap import indent

CITIES = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "Germany": "Berlin", "Austria": "Vienna",
    "Poland": "Warsaw", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Greece": "Athens", "Ireland": "Dublin", "Hungary": "Budapest", "Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima",
    "Chile": "Santiago", "Cuba": "Havana", "Kenya": "Nairobi", "Canada": "Ottawa", "India": "New Delhi",
}  # fmt: skip
FIELDS = ("name", "email", "phone", "street", "city", "country", "birthday", "language", "currency", "notes")
HOURS = range(8, 20)
WEEK = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def tables() -> Iterator[str]:
    """Markdown tables: full, with empty cells, with the same word in most rows, one under another."""
    yield _table(("Country", "Capital"), CITIES.items())
    yield _table(
        ("Country", "Capital", "Continent"), [(c, a, "Europe") for c, a in list(CITIES.items())[:14]]
    )
    yield _table(("", *WEEK), [(f"{hour}:00", *[""] * 7) for hour in HOURS])
    yield _table(
        ("Hour", *WEEK[:5]),
        [(f"{h}:00", *["Math" if (h + d) % 3 else "Free" for d in range(5)]) for h in HOURS],
    )
    yield _table(("x", *range(1, 11)), [(a, *[a * b for b in range(1, 11)]) for a in range(1, 11)])
    yield (
        _table("ABC", [*product((0, 1), repeat=3)])
        + "\n\n"
        + _table(
            ("A", "B", "A and B", "A or B"), [(a, b, a & b, a | b) for a, b in product((0, 1), repeat=2)]
        )
    )
    yield _table(("p", "q", "r", "p → q", "q → r"), [(*row, "T", "F") for row in product("TF", repeat=3)])
    yield _table(
        ("Feature", "Free", "Pro", "Team"),
        [(f"{field.capitalize()} export", "no", "yes", "yes") for field in FIELDS],
    )
    yield _table(("Celsius", "Fahrenheit"), [(c, c * 9 / 5 + 32) for c in range(-20, 41, 2)])
    yield "\n\n".join(
        f"## {day}\n\n"
        + _table(
            ("Meal", "Dish", "kcal"),
            [
                (meal, dish, 400 + 10 * at)
                for meal, dish in zip(
                    ("Breakfast", "Lunch", "Dinner"), ("Oats", "Rice and beans", "Soup"), strict=True
                )
            ],
        )
        for at, day in enumerate(WEEK)
    )


def records() -> Iterator[str]:
    """JSON, CSV, YAML, XML, SQL, TOML, logs: one record a line or a few lines, most of it as in the one before."""
    rows = [
        {"id": at, "country": c, "capital": a, "active": True, "tags": ["city", "capital"]}
        for at, (c, a) in enumerate(CITIES.items(), 1)
    ]
    yield _code("json", json.dumps(rows, indent=2))
    yield json.dumps(rows[:12], indent=4)
    yield _code(
        "csv",
        "id,country,capital,active\n"
        + "\n".join(f"{row['id']},{row['country']},{row['capital']},true" for row in rows),
    )
    yield "\n".join(f"{n},0,0,0,0,0,0,0" for n in range(40))
    yield _code(
        "yaml",
        "services:\n"
        + "".join(
            f"  {f}:\n    image: registry/{f}:latest\n    restart: always\n    environment:\n      - LOG_LEVEL=info\n    networks:\n      - backend\n"
            for f in FIELDS
        ),
    )
    yield _code(
        "xml",
        "<cities>\n"
        + "".join(
            f'  <city id="{r["id"]}">\n    <name>{r["capital"]}</name>\n    <country>{r["country"]}</country>\n  </city>\n'
            for r in rows
        )
        + "</cities>",
    )
    yield _code(
        "sql",
        "\n".join(
            f"INSERT INTO cities (id, name, country) VALUES ({r['id']}, '{r['capital']}', '{r['country']}');"
            for r in rows
        ),
    )
    yield "\n".join(
        f"INSERT INTO cities (id, name, country) VALUES ({r['id']}, '{r['capital']}', '{r['country']}');"
        for r in rows
    )
    yield "\n".join(
        f"2024-05-{n % 28 + 1:02} 12:{n:02}:07 INFO  worker-{n % 4}: request finished in {n * 37 % 211} ms (status 200)"
        for n in range(45)
    )
    yield _code(
        "toml",
        "\n".join(
            f'[server.{city.lower().replace(" ", "-")}]\nhost = "10.0.0.{n}"\nport = 8080\nenabled = true\n'
            for n, city in enumerate(CITIES.values())
        ),
    )


def programs() -> Iterator[str]:
    """Code whose lines are alike: accessors, tests, cases, markup, styles, constants; with a fence, and now and then without."""
    yield _code(
        "java",
        "public class Person {\n"
        + "".join(f"    private String {f};\n" for f in FIELDS)
        + "".join(
            f"\n    public String get{f.capitalize()}() {{\n        return {f};\n    }}\n\n    public void set{f.capitalize()}(String {f}) {{\n        this.{f} = {f};\n    }}\n"
            for f in FIELDS
        )
        + "}",
    )
    yield _code(
        "python",
        "".join(
            f"def test_{f}_is_kept():\n    person = Person({f}='x')\n    assert person.{f} == 'x'\n\n\n"
            for f in FIELDS
        ),
    )
    yield _code(
        "javascript",
        "switch (country) {\n"
        + "".join(f"  case '{c}':\n    return '{a}';\n" for c, a in CITIES.items())
        + "}",
    )
    yield _code(
        "html",
        "<ul>\n"
        + "".join(f'  <li class="item"><a href="#">Item {n}</a></li>\n' for n in range(60))
        + "</ul>",
    )
    yield _code(
        "css",
        "".join(
            f".{f} {{\n  margin: 0;\n  padding: 0;\n  border: 0;\n  font-size: 100%;\n}}\n\n" for f in FIELDS
        ),
    )
    yield "if (x == 0) {\n    return 0;\n}" + "".join(
        f" else if (x == {n}) {{\n    return {n * n};\n}}" for n in range(1, 30)
    )
    yield _code("python", "board = [\n" + "    [0, 0, 0, 0, 0, 0, 0, 0],\n" * 8 + "]")
    yield _code("bash", "".join(f"mv chapter-{n}.txt chapter-{n:02}.md\n" for n in range(1, 41)))
    yield _code(
        "diff",
        "".join(
            f"-    {f} = models.CharField(max_length=100)\n+    {f} = models.CharField(max_length=200)\n"
            for f in FIELDS * 2
        ),
    )
    yield _code(
        "python",
        "".join(f"{c.upper()} = Country({c!r}, capital={a!r}, is_member=True)\n" for c, a in CITIES.items()),
    )


def drawings() -> Iterator[str]:
    """ASCII art, boards, bars, trees and tabs."""
    yield "\n".join(" " * (10 - n) + "*" * (2 * n + 1) for n in range(11)) + "\n" + "         |||\n" * 3
    yield _code("", "\n".join("#" * 30 if n in (0, 14) else "#" + " " * 28 + "#" for n in range(15)))
    yield _code("", "\n".join("+---" * 8 + "+\n" + "|   " * 8 + "|" for _ in range(8)))
    yield "  a b c d e f g h\n" + "\n".join(f"{8 - n} " + " ".join("." * 8) for n in range(8))
    yield "\n\n".join(
        "\n---+---+---\n".join(
            " | ".join(" X" if (r * 3 + c) % (t + 2) == 0 else " " for c in range(3)) for r in range(3)
        )
        for t in range(6)
    )
    yield _code(
        "", "\n".join(f"{day:<10} {'█' * (at * 3 + 2)} {at * 3 + 2}" for at, day in enumerate(WEEK * 3))
    )
    yield _code(
        "",
        "src\n"
        + "".join(
            f"├── {f}\n│   ├── __init__.py\n│   ├── models.py\n│   ├── views.py\n│   └── tests.py\n"
            for f in FIELDS
        )
        + "└── main.py",
    )
    yield _code(
        "",
        "\n\n".join(
            "\n".join(
                f"{string}|--{n}---{n}---{n + 2}---{n}--|--{n}---{n}---{n + 2}---{n}--|"
                for string in "eBGDAE"
            )
            for n in range(4)
        ),
    )
    yield "```\n" + "\n".join(" ".join("0" for _ in range(16)) for _ in range(16)) + "\n```"
    yield "\n".join(f"{n:08b}  0x{n:02X}  {n}" for n in range(64))


def sums() -> Iterator[str]:
    """Numbers: counting, times tables, series, conversions, dumps."""
    yield "\n".join(map(str, range(1, 501)))
    yield ", ".join(map(str, range(1, 301)))
    yield "\n".join(f"{a} x {b} = {a * b}" for a, b in product(range(1, 11), range(1, 11)))
    yield "\n".join(
        "FizzBuzz" if n % 15 == 0 else "Fizz" if n % 3 == 0 else "Buzz" if n % 5 == 0 else str(n)
        for n in range(1, 101)
    )
    yield "\n".join(f"{n}! = {' x '.join(map(str, range(n, 0, -1)))}" for n in range(1, 13))
    yield "\n".join(f"The square of {n} is {n * n}, and its cube is {n**3}." for n in range(1, 31))
    yield "\n".join(f"{n} km = {n * 0.621:.2f} miles" for n in range(1, 61))
    yield "\n".join(f"{n}. F({n}) = F({n - 1}) + F({n - 2})" for n in range(2, 41))
    yield _code(
        "", "\n".join(f"{n * 16:08x}  " + " ".join(["00"] * 16) + "  |................|" for n in range(24))
    )
    yield "\n".join(f"Roll {n}: {n * 7 % 6 + 1}" for n in range(1, 61))


def _table(head: object, rows: object) -> str:
    cells = [tuple(map(str, row)) for row in rows]  # type: ignore[attr-defined]
    top = tuple(map(str, head))  # type: ignore[call-overload]
    return "\n".join(f"| {' | '.join(row)} |" for row in (top, ("---",) * len(top), *cells))


def _code(language: str, text: str) -> str:
    return (
        f"Here it is:\n\n```{language}\n{indent(text, '').rstrip()}\n```\n\nTell me if you want it otherwise."
    )
