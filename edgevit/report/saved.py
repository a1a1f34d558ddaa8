"""Pictures as files of their own: SVG with its colours written in, and CSV of the figures that it draws."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping

from edgevit.report.cards import Picture
from edgevit.report.page import STYLE

VARIABLE = re.compile(r"var\(--([a-z-]+)\)")
RULE = re.compile(r"^(\.?[a-z][^{}@]*)\{([^{}]*)\}", re.MULTILINE)
DRAWN = ("fill", "stroke", "opacity", "font", "paint-order")


def files(drawn: Mapping[str, Picture]) -> Iterator[tuple[str, str]]:
    """Yield name and content of an SVG and a CSV for each picture."""
    for name, picture in drawn.items():
        yield f"{name}.svg", standalone(picture.wide)
        yield f"{name}.csv", as_csv(picture)


def standalone(svg: str) -> str:
    """Return an SVG that looks, in any viewer, as it does on the light page."""
    style = STYLE.read_text(encoding="utf-8").partition("@media (max-width")[0]
    colours = dict(re.findall(r"--([a-z-]+): ([^;]+);", style.partition("@media")[0]))
    rules = []
    for selector, body in RULE.findall(style.partition("}\n}\n")[2]):
        kept = [part.strip() for part in body.split(";") if part.strip().startswith(DRAWN)]
        if kept:
            shown = VARIABLE.sub(lambda found: colours.get(found[1], "black"), "; ".join(kept))
            rules.append(f"{selector.strip()} {{ {shown} }}")
    _, width, height = re.findall(r'viewBox="0 0 (([\d.]+) ([\d.]+))"', svg)[0]
    ground = f'<rect width="{width}" height="{height}" fill="{colours["card"]}"/>'
    opening, rest = svg.split(">", 1)
    style_text = "\n".join(rules)
    return f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{style_text}</style>{ground}{rest}\n'


def as_csv(picture: Picture) -> str:
    """Return the figures that a picture draws."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(picture.data.head)
    writer.writerows(picture.data.rows)
    return out.getvalue()
