from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from edgevit.report.html import render
from edgevit.report.view import Report, make_report
from edgevit.schema.claims import Claim
from tests.bundles import RECIPE
from tests.report.sample import SHA, manifest, measurement, path
from tests.report.test_table import EMULATED

VOID = {"meta", "br"}


class Balance(HTMLParser):
    """Collects what is opened and not closed, and every attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def variants() -> dict[str, Report]:
    facts = manifest()
    deep = manifest(depth=24, removed=())
    return {
        "not measured": make_report(facts),
        "measured": make_report(facts, [measurement()], bundle_sha256=SHA),
        "two measurements": make_report(facts, [measurement(), measurement()], bundle_sha256=SHA),
        "nothing known": make_report(
            dataclasses.replace(facts, claims=(), accuracy=(), origin={}),
            [measurement(memory=None, process=None, unattributed_time_ms=None)],
            bundle_sha256=SHA,
        ),
        "few runs": make_report(facts, [measurement(paths=(path("real", 4.0, 1.5, runs=1),))], bundle_sha256=SHA),
        "no gates": make_report(manifest(gated=False)),
        "48 branches": make_report(deep),
    }


@pytest.mark.parametrize("name", variants())
def test_every_variant_is_well_formed_and_loads_nothing(name: str) -> None:
    page = render(variants()[name])
    parser = Balance()
    parser.feed(page)
    assert parser.stack == []
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(parser.tags)
    assert not [a for a in parser.attributes if a[0] in ("src", "href", "action") or a[0].startswith("on")]
    assert "http" not in page.replace("http-equiv", "")
    assert "url(" not in page and "@import" not in page
    assert "nan" not in re.findall(r'"(nan|inf|-inf)"', page) and "None" not in page


@pytest.mark.parametrize("name", variants())
def test_every_picture_is_xml_with_a_name_and_stays_inside_its_frame(name: str) -> None:
    pictures = re.findall(r"<svg.*?</svg>", render(variants()[name]), re.S)
    assert pictures
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert root[0].tag == "title" and root[0].text
        width, height = map(float, root.attrib["viewBox"].split()[2:])
        for node in root.iter():
            for key, limit in (("x", width), ("cx", width), ("x1", width), ("x2", width)):
                assert -0.1 <= float(node.attrib.get(key, 0)) <= limit + 0.1, ElementTree.tostring(node)
            for key in ("y", "cy", "y1", "y2"):
                assert -0.1 <= float(node.attrib.get(key, 0)) <= height + 0.1, ElementTree.tostring(node)
            if node.tag == "rect":
                assert float(node.attrib["x"]) + float(node.attrib["width"]) <= width + 0.1
                assert float(node.attrib["y"]) + float(node.attrib["height"]) <= height + 0.1


def test_figures_stand_on_the_page() -> None:
    page = render(make_report(manifest(), [measurement()], bundle_sha256=SHA))
    for figure in (
        "bound 420 kB",
        "peak 390 kB at b00_mhsa.qkv/y",
        "75.1 % [72.3, 77.7], n = 1000",
        SHA,
        "8 of 8 Gemm",
    ):
        assert figure in page
    assert "n too small" in page and "p90" in page
    assert "Not measured yet" not in page
    assert "Not measured yet" in render(make_report(manifest()))


def test_a_failed_claim_does_not_look_like_one_that_held() -> None:
    facts = dataclasses.replace(manifest(), claims=(Claim(name="skip", held=False, summary="it runs"),))
    page = render(make_report(facts))
    assert "✗ failed" in page and "✓ passed" not in page


def test_strings_of_a_manifest_cannot_become_markup() -> None:
    evil = '<script>alert("1")</script>'
    facts = dataclasses.replace(
        manifest(),
        name=evil,
        origin={evil: evil},
        recipe=dataclasses.replace(RECIPE, model=evil, compression=(evil,)),
        claims=(Claim(name="skip", held=True, summary=evil),),
    )
    page = render(make_report(facts))
    assert "<script" not in page and page.count("&lt;script&gt;") >= 5


def test_a_disturbed_measurement_says_so() -> None:
    waited = measurement(paths=(path("real", 10.0, 1.0, cpu_ms=5.0),))
    assert "Trust the CPU time" in render(make_report(manifest(), [waited], bundle_sha256=SHA))


def test_equal_reports_give_equal_pages() -> None:
    one, other = (render(make_report(manifest(), [measurement()], bundle_sha256=SHA)) for _ in range(2))
    assert one == other


def test_an_emulated_machine_shows_no_time_and_doubts_stand_with_the_figures() -> None:
    page = render(make_report(manifest(), [measurement(**EMULATED)], bundle_sha256=SHA))
    assert "emulated by qemu: times are withheld" in page and "withheld: the machine was emulated" in page
    assert "wall median" not in page
    doubted = render(make_report(manifest(), [measurement(warnings=("<b>hot</b>",))], bundle_sha256=SHA))
    assert "&lt;b&gt;hot&lt;/b&gt;" in doubted and "<b>hot" not in doubted
