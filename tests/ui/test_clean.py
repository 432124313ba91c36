"""What a terminal may have of a text."""

import io
import json

import pytest

from kvchat.ui.clean import CleanStream, escaped, for_data, for_messages, raw, sanitize, styled
from tests.hostile import ALL, HOSTILE, LEGIBLE, found_in


def in_pieces(text: str) -> str:
    """What of a text reaches a terminal that gets it character by character."""
    out = io.StringIO()
    stream = CleanStream(out)
    for char in text:
        stream.write(char)
    return out.getvalue()


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_hostile_text_gives_no_orders_and_hides_nothing(text: str) -> None:
    assert found_in(f"a{text}b")
    assert not found_in(sanitize(f"a{text}b"))
    assert not found_in(in_pieces(f"a{text}b"))
    assert not found_in(styled(f"a{text}b"), coloured=True)
    assert sanitize(sanitize(text)) == sanitize(text)


@pytest.mark.parametrize("text", LEGIBLE, ids=ascii)
def test_emoji_and_text_from_right_to_left_stay_legible(text: str) -> None:
    assert sanitize(text) == in_pieces(text) == styled(text) == text


def test_a_keycap_stays_one() -> None:
    assert sanitize("1️⃣ and v1\ufe0f") == "1️⃣ and v1"


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_json_for_a_terminal_has_the_same_value(text: str) -> None:
    line = json.dumps({text: [text]}, ensure_ascii=False)
    assert json.loads(escaped(line)) == {text: [text]}
    assert not found_in(escaped(line))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_data_goes_into_a_pipe_as_it_is_and_messages_are_clean_everywhere() -> None:
    pipe, log, screen = io.StringIO(), io.StringIO(), Terminal()
    print(ALL, file=for_data(pipe))
    for_messages(log).writelines([ALL, "\n"])
    print(ALL, file=for_data(screen))
    assert pipe.getvalue() == ALL + "\n"
    assert not found_in(log.getvalue())
    assert screen.getvalue() == log.getvalue()


def test_a_stream_is_cleaned_once_and_its_own_self_is_there_for_our_sequences() -> None:
    out = Terminal()
    stream = for_messages(out)
    assert for_data(stream) is stream
    assert raw(stream) is raw(out) is out
    stream.write_styled("\x1b[1mbold\x1b[0m \x1b[2Jleft")
    assert out.getvalue() == "\x1b[1mbold\x1b[0m ␛[2Jleft"
    assert stream.isatty()
