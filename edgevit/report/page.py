"""A page of cards: style, pictures and its one script are in it, and it loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from edgevit.report.cards import Card

HERE = Path(__file__).parent
STYLE, SCRIPT = HERE / "style.css", HERE / "page.js"


def page(
    title: str, lead: str, cards: Sequence[Card], *, made_by: str = "", strong: Sequence[str] = (), footer: str = ""
) -> str:
    """Return one self-contained HTML document; whatever strings it is given, they stay text.

    Args:
        title: its heading.
        lead: the paragraph below it.
        cards: what follows, in order.
        made_by: the version of edgevit.
        strong: what must not be missed, a sentence each.
        footer: the last line.
    """
    script = SCRIPT.read_text(encoding="utf-8")
    return _template().render(
        title=title,
        lead=lead,
        cards=cards,
        made_by=made_by,
        strong=strong,
        footer=footer or f"Made by edgevit {made_by}.",
        style=Markup(STYLE.read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
    )


@lru_cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(HERE)
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, **options)
    return environment.get_template("page.html.jinja")
