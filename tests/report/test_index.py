"""The index of a folder of pages: what is known of a build stands there, and says what it is."""

from __future__ import annotations

import dataclasses
import re

from edgevit.report.index import Entry, render
from edgevit.schema.manifest import Manifest
from tests.report.sample import manifest, measurement


def page(*manifests: Manifest) -> str:
    entries = [Entry(name=f"b{i}", file=f"b{i}.html", manifest=m, measurement=None) for i, m in enumerate(manifests)]
    return render(entries, None)


def without(metric: str, facts: Manifest) -> Manifest:
    return dataclasses.replace(facts, accuracy=tuple(row for row in facts.accuracy if row.metric != metric))


def test_an_agreement_that_is_not_with_the_original_says_so() -> None:
    facts = manifest()
    original = tuple(dataclasses.replace(row, against="original") for row in facts.accuracy)
    cells = re.findall(r">(95\.8[^<]*)<", page(facts, dataclasses.replace(facts, accuracy=original)))
    assert cells == ["95.8\u00a0% (float)", "95.8\u00a0%"]


def test_a_phone_shows_what_is_known_of_top1_and_agreement() -> None:
    def shown(made: str) -> list[str]:
        heads = re.findall(r'<th scope="col" class="([^"]*)"[^>]*>([^<]*)</th>', made)
        return [name for kinds, name in heads if "less" not in kinds]

    assert shown(page(manifest())) == ["build", "time", "size", "top-1"]
    assert shown(page(without("top1", manifest()))) == ["build", "time", "size", "agrees"]


def test_it_has_a_title_of_its_own_and_every_page() -> None:
    entry = Entry(name="a<b", file="a.html", manifest=manifest(), measurement=measurement())
    made = render([entry], "compare.html")
    assert "<h1>1 build</h1>" in made and "a&lt;b</a>" in made and 'href="compare.html"' in made
