"""The table of all settings in kvchat/docs/configuration.md, made from the code: `python -m tests.commands.settings_page`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from kvchat.commands.config import described
from kvchat.commands.flags import FLAG_NAMES
from kvchat.config import SECTIONS, variable_name

PAGE = Path(__file__).parents[2] / "kvchat" / "docs" / "configuration.md"
HEAD = "| setting | flag | variable | what it is |\n|---|---|---|---|\n"


def table() -> str:
    """One row a setting, in the order in which the template of config.toml has them."""
    rows = []
    for section, cls in SECTIONS.items():
        for item in fields(cls):
            key = f"{section}.{item.name}"
            flag = f"`{FLAG_NAMES[key]}`" if key in FLAG_NAMES else ""
            rows.append(
                f"| `{key}` | {flag} | `{variable_name(section, item)}` | {described(section, item)} |\n"
            )
    return HEAD + "".join(rows)


def with_table(page: str) -> str:
    """The page with its table made anew."""
    before, _, rest = page.partition(HEAD)
    _, _, after = rest.partition("\n\n")
    return f"{before}{table()}\n{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
