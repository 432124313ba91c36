"""A conversation as a page of HTML: answers are rendered, and nothing in them runs, is fetched or breaks out."""

import re

from hypothesis import given
from hypothesis import strategies as st

from kvchat.chat.page import page


def answer(text: str) -> str:
    """The page's body with one answer."""
    return page("title", [{"role": "assistant", "content": text, "reasoning": ""}]).partition("<h1>")[2]


def test_an_answers_markdown_is_rendered() -> None:
    shown = answer("# Head\n\n- **one**\n- `two`\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nx < 1\n```")
    for part in (
        "<h1>Head</h1>",
        "<li><strong>one</strong></li>",
        "<code>two</code>",
        "<td>1</td>",
        '<pre><code class="language-python">x &lt; 1',
    ):
        assert part in shown


def test_what_people_wrote_stays_as_they_wrote_it() -> None:
    shown = page("t", [{"role": "user", "content": "**no** <b>bold</b>\n  and indented"}])
    assert '<div class="plain">**no** &lt;b&gt;bold&lt;/b&gt;\n  and indented</div>' in shown


def test_tags_are_text_and_no_link_runs_and_no_image_is_fetched() -> None:
    shown = answer(
        "<script>x</script> [go](javascript:alert(1)) ![seen](http://example.com/a.png) [ok](http://a.b)"
    )
    assert "<script" not in shown
    assert "<img" not in shown
    assert 'href="javascript' not in shown
    assert '<a href="http://a.b">ok</a>' in shown
    assert "default-src 'none'" in page("t", [])


def test_formulas_keep_their_backslashes() -> None:
    assert r"\(a_1 * b_1\)" in answer(r"so \(a_1 * b_1\) holds")


@given(st.text(alphabet=st.sampled_from(list("ab<>&\"'`*_[]()!|-# \n/:")), max_size=80))
def test_whatever_an_answer_says_it_opens_no_tag_of_its_own(text: str) -> None:
    tags = {tag.lower() for tag in re.findall(r"</?([A-Za-z][A-Za-z0-9]*)", answer(text))}
    known = "h1 h2 h3 h4 h5 h6 section p ul ol li strong em s code pre table thead tbody tr th td blockquote hr br a html"
    assert tags <= set(known.split())
