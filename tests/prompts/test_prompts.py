"""Saved system prompts: where they are found, what they become, and what is said about a broken one."""

from datetime import datetime
from pathlib import Path

import pytest

from kvchat.errors import UsageError
from kvchat.prompts.lint import Measure, lint
from kvchat.prompts.prompt import Prompt, Shelf, read_prompt
from kvchat.prompts.shelves import Prompts, check_name, shipped_folder

NOW = datetime(2031, 5, 7, 8, 9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "prompts").mkdir()
    return tmp_path / "prompts"


def written(folder: Path, text: str, name: str = "mine") -> Prompt:
    (folder / f"{name}.md").write_text(text)
    return read_prompt(folder / f"{name}.md", Shelf.YOURS)


def error_of(folder: Path, text: str, **values: str) -> str:
    with pytest.raises(UsageError) as caught:
        written(folder, text).render(values, NOW)
    assert caught.value.remedy
    return caught.value.message.removeprefix(f"{folder}/mine.md").removeprefix(", ")


def test_a_prompt_has_a_head_and_a_body(folder: Path) -> None:
    text = (
        "---\ndescription: Short\n  words\nmodel: big\noptions: {temperature: 0, stop: [x]}\n"
        "vars: {a: one, b: }\npin: true\n---\n\nHello {{ a }} and {{ b }}.\n"
    )
    prompt = written(folder, text)
    assert (prompt.name, prompt.description, prompt.model, prompt.pin) == ("mine", "Short words", "big", True)
    assert prompt.vars == {"a": "one", "b": None}
    assert prompt.render({"b": "two"}, NOW) == "Hello one and two."
    assert prompt.settings("text") == {
        "chat.system": "text",
        "chat.pin": True,
        "model.name": "big",
        "sampling.temperature": 0.0,
        "sampling.stop": ("x",),
    }


def test_a_plain_file_is_a_prompt(folder: Path) -> None:
    prompt = written(folder, "\n\nBe brief.\n")
    assert (prompt.render({}, NOW), prompt.first_line) == ("Be brief.", 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("---\ndescription: x\nBe brief.", "line 1: the head is never closed"),
        ("---\ndescription: x\nvars: [a\n---\n", "line 3: "),
        ("---\ndescription: x\ndescripton: y\n---\n", "line 3: no key is called 'descripton'"),
        ("---\n- a\n---\n", "line 2: the head is not a mapping"),
        ("---\npin: maybe\n---\n", "line 2: pin is neither"),
        ("---\nmodel: 5\n---\n", "line 2: model is not text"),
        ("---\noptions:\n  temperature: -1\n---\n", "line 3: "),
        ("---\noptions:\n  temprature: 1\n---\n", "line 3: no setting is called 'temprature'"),
        ("---\noptions:\n  offline: true\n---\n", "line 3: "),
        ("---\nvars: {a-b: 1}\n---\n", "line 2: vars is not a mapping"),
        ("---\nvars: {a: 1}\n---\n\n\nx {{ a }} {% if %}", "line 6: "),
        ("---\npin: true\n---\none\ntwo {{ b }}", "line 5: 'b' is undefined"),
        ("one\n{{ 1 / 0 }}", "line 2: division by zero"),
        ("{{ ''.__class__.__mro__ }}", "line 1: access to attribute '__class__'"),
        ("one\n{% include 'no.md' %}", "line 2: no file 'no.md'"),
        ("{% include '../secret' %}", "line 1: no file '../secret'"),
        ("one\n{{ [1]|tojson(indent=10**6) }}", "line 2: the template is stopped: it indents too widely"),
        ("one\n{{ 'x' * 10**9 }}", "line 2: the template is stopped: it makes a value that is too large"),
        ("{% macro m() %}{{ m() }}{% endmacro %}\n{{ m() }}", "line 1: maximum recursion depth exceeded"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "line 1: maximum recursion depth exceeded"),
        ("{% if 1 %}" * 150 + "{% endif %}" * 150, "line 1: too many levels of indentation"),
        ("{{ 'a'.encode() }}", "line 1: a template may not call 'encode'"),
        ("{% include 'mine.md' %}", "line 1: maximum recursion depth exceeded"),
        ("x" * 100_000, "line 1: the template is stopped: it has more than 48,000 characters"),
    ],
)
def test_a_mistake_is_named_with_its_line(folder: Path, text: str, said: str) -> None:
    (folder.parent / "secret").write_text("secret")
    assert error_of(folder, text).startswith(said)


def test_a_link_out_of_the_folder_is_not_followed(folder: Path) -> None:
    (folder.parent / "secret").write_text("secret")
    (folder / "link").symlink_to(folder.parent / "secret")
    assert "no file 'link'" in error_of(folder, "{% include 'link' %}")


def test_a_value_too_few_or_too_many_is_named(folder: Path) -> None:
    text = "---\nvars: {topic: }\n---\n{{ topic }}"
    assert error_of(folder, text) == " needs a value for 'topic'"
    assert error_of(folder, text, topc="x") == " has no variable 'topc'"


def test_the_clock_is_that_of_the_call(folder: Path) -> None:
    prompt = written(folder, "{{ today() }} {{ now() }} {{ now('%H') }} {{ now }} {{ today ~ '' }}")
    assert prompt.render({}, NOW) == "2031-05-07 2031-05-07 08:09 08 2031-05-07 08:09 2031-05-07"


def test_a_body_that_cannot_be_read_costs_lint_one_finding(folder: Path) -> None:
    ((line, text),) = found(folder, "---\ndescription: x\n---\n{{ " + "(" * 3000 + "1 }}")
    assert line == 4 and text.startswith("maximum recursion depth exceeded")


def test_a_file_that_is_too_large_is_not_included(folder: Path) -> None:
    (folder / "large").write_text("x" * 2_000_000)
    assert error_of(folder, "{% include 'large' %}").endswith("large is too large to be included")


def test_the_working_folder_wins_over_the_users_and_that_over_the_shipped(
    folder: Path, tmp_path: Path
) -> None:
    yours = tmp_path / "config" / "prompts"
    yours.mkdir(parents=True)
    environ = {"KVCHAT_CONFIG": str(yours.parent / "config.toml")}
    prompts = Prompts.around(tmp_path, environ, is_trusted=lambda folder: folder == tmp_path / "prompts")
    assert prompts.prompt("proofread").shelf is Shelf.SHIPPED
    written(yours, "yours", "proofread")
    assert prompts.prompt("proofread").shelf is Shelf.YOURS
    written(folder, "here", "proofread")
    assert prompts.prompt("proofread").shelf is Shelf.HERE
    assert prompts.prompt(str(yours / "proofread.md")).body == "yours"
    with pytest.raises(UsageError, match="did you mean 'proofread'"):
        prompts.prompt("profread")


def test_a_working_folder_that_is_not_trusted_is_named_and_not_read(folder: Path, tmp_path: Path) -> None:
    written(folder, "here", "proofread")
    written(folder, "here", "mine")
    (folder / "secret.md").symlink_to("/dev/zero")
    prompts = Prompts.around(tmp_path, {"KVCHAT_CONFIG": str(tmp_path / "config" / "config.toml")})
    assert prompts.untrusted == folder and set(prompts.waiting()) == {"mine", "proofread", "secret"}
    assert prompts.prompt("proofread").shelf is Shelf.SHIPPED
    assert "mine" not in prompts.paths()
    with pytest.raises(UsageError, match=r"which you have not trusted yet.*--trust-prompts"):
        prompts.prompt("mine")
    assert prompts.prompt(str(folder / "mine.md")).body == "here", "who names the file means it"


def test_shipped_prompts_are_not_the_working_folders_in_their_own_repository(tmp_path: Path) -> None:
    repository = shipped_folder().parent
    prompts = Prompts.around(repository, {"KVCHAT_CONFIG": str(tmp_path / "config.toml")})
    assert {shelf for shelf, _ in prompts.paths().values()} == {Shelf.SHIPPED}


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "x.md", "a b"])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="can't be called"):
        check_name(name)


SHIPPED = sorted(shipped_folder().glob("*.md"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_prompt_is_clean_and_renders_without_variables(path: Path) -> None:
    prompt = read_prompt(path, Shelf.SHIPPED)
    assert lint(prompt, Measure()) == []
    assert prompt.render({}, NOW)


def test_eight_prompts_are_shipped_one_of_them_long() -> None:
    assert len(SHIPPED) == 8
    assert max(len(path.read_text().split()) for path in SHIPPED) > 1200


def found(folder: Path, text: str) -> list[tuple[int, str]]:
    prompt = written(folder, text)
    return [
        (finding.line, finding.text) for finding in lint(prompt, Measure(lambda t: len(t.split()), "words"))
    ]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "one two\n{{ today() }}\nthree",
            "the clock today() is read before fixed text: 2 of 3 words survive",
        ),
        (
            "one\n{{ now('%H') }} two {{ today() }}",
            "the clock now() is read before fixed text: 1 of 2 words",
        ),
        (
            "one\n{{ ['a', 'b'] | random }} two",
            "a random value (random) stands before fixed text: 1 of 2 words",
        ),
        (
            "one\n{% include 'notes.md' %}\nlast",
            "a file that may change is included before fixed text: 1 of 2 words",
        ),
        ("one\n{{ strftime_now('%Y') }}", "'strftime_now' is not defined; write today() or now()"),
        ("one\n{{ other }}", "'other' is not defined; declare it under vars"),
        ("one\n{% endif %}", "Encountered unknown tag 'endif'"),
    ],
)
def test_lint_names_what_defeats_the_cache(folder: Path, body: str, said: str) -> None:
    (folder / "notes.md").write_text("some notes")
    ((line, text),) = found(folder, f"---\ndescription: x\n---\n{body}")
    assert line == 5
    assert text.startswith(said)


@pytest.mark.parametrize("body", ["one\n{{ today() }}.", "one {% include 'notes.md' %}", "one"])
def test_what_changes_at_the_very_end_is_harmless(folder: Path, body: str) -> None:
    (folder / "notes.md").write_text("some notes")
    assert found(folder, f"---\ndescription: x\n---\n{body}") == []


def test_lint_names_what_is_declared_for_nothing(folder: Path) -> None:
    assert found(folder, "---\nvars: {a: 1}\n---\n") == [(1, "there is no description"), (4, "it is empty")]
    assert found(folder, "---\nvars: {a: 1}\n---\nx") == [
        (1, "there is no description"),
        (1, "the variable 'a' is declared and not used"),
    ]
