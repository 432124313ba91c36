"""A conversation as a page of HTML that needs nothing else: Markdown is rendered, and nothing in it runs or is fetched."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from kvchat.chat.markup import markdown_parser

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 46rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }}
section {{ margin: 1rem 0; padding: .5rem 1rem; border-left: .25rem solid #8888; overflow-wrap: anywhere; }}
section.user {{ border-color: #4a90d9; }}
section.system, details {{ opacity: .7; }}
section > h2 {{ margin: 0; font-size: .8rem; text-transform: uppercase; letter-spacing: .05em; }}
div.plain {{ white-space: pre-wrap; }}
pre {{ padding: .5rem; overflow-x: auto; background: #8882; }}
code {{ font-family: ui-monospace, monospace; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .2rem .6rem; border: 1px solid #8888; }}
</style>
<h1>{title}</h1>
{body}
</html>"""


def page(title: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """The page. Answers are Markdown; what people wrote stays as they wrote it."""
    body = "\n".join(_section(message) for message in messages)
    return _PAGE.format(title=html.escape(title), body=body)


def _section(message: Mapping[str, Any]) -> str:
    role, content = message["role"], message["content"].strip()
    shown = _rendered(content) if role == "assistant" else _plain(content)
    reasoning = message.get("reasoning", "").strip()
    thought = f"<details><summary>reasoning</summary>{_plain(reasoning)}</details>" if reasoning else ""
    return f'<section class="{role}"><h2>{role}</h2>{thought}{shown}</section>'


def _plain(text: str) -> str:
    return f'<div class="plain">{html.escape(text)}</div>'


def _rendered(markdown: str) -> str:
    """Its HTML. Tags in it are text, images are links to them, and links run no script."""
    return str(markdown_parser().disable(["image"]).render(markdown)).strip()
