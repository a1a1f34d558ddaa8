from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from edgevit.errors import BundleError
from edgevit.measure.percentiles import latency
from edgevit.program.spec import OriginalSpec
from edgevit.report import pictures
from edgevit.report.drawn import figures
from edgevit.report.html import render
from edgevit.report.memory_view import MemoryView
from edgevit.report.page import STYLE
from edgevit.report.saved import as_csv
from edgevit.report.summary import as_markdown
from edgevit.report.thumbs import thumbs
from edgevit.report.view import Report, make_report
from edgevit.schema.claims import Claim, Fraction
from edgevit.schema.manifest import BundleFile, Manifest, PointUse, Spread, TokenUse
from edgevit.schema.measurement import Baseline, MemoryPoint, PointLatency
from edgevit.schema.points import OperatingPoint, PointName
from tests.bundles import RECIPE
from tests.report.sample import SHA, manifest, measurement, path
from tests.report.test_table import EMULATED

NAMED: tuple[tuple[float, PointName, float], ...] = (
    (-2.0, "fastest", 100.0),
    (-2.0, "fast", 100.0),
    (0.0, "balanced", 200.0),
)
VOID = {"meta", "br", "img"}
FILES = tuple(
    BundleFile(path=path, bytes=size, sha256="0" * 64)
    for path, size in (("model/model.onnx", 5_000_000), ("model/a.data", 700), ("README.md", 0))
)
GATES = ("1110", "0110", "0010", "1110")
BASELINES = (
    Baseline(name="dense float", runtime="onnxruntime", runtime_version="1", wall=latency([20.0]), cpu=latency([8.0])),
    Baseline(name="dense int8", runtime="onnxruntime", runtime_version="1", why="it failed <b>"),
)


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


def with_errors(facts: Manifest) -> Manifest:
    branches = [dataclasses.replace(branch, error=0.004 * (i + 1)) for i, branch in enumerate(facts.branches)]
    return dataclasses.replace(facts, branches=tuple(branches))


LEFT = Spread(mean=40.4, low=36.0, high=52.0)
TOKENS = TokenUse(
    images=8,
    macs=Spread(mean=7e8, low=6e8, high=9e8),
    points=(PointUse(after="b00_mhsa", left=LEFT, most=64, fewest=32),),
)


STEPS = ("tokens merged at 1:4, as asked (edgevit 0.1.0)",)
MERGED = OriginalSpec(name="x", weights_sha256="", macs=5, parameters=7, steps=STEPS)


def test_how_many_tokens_an_image_keeps_is_told() -> None:
    page = render(variants()["tokens follow the image"])
    assert ", merging as many tokens as the image allows." in page
    assert "40 after b00_mhsa (32 to 64)" in page and "MACs of an image, expected" in page
    assert "600 M to 900 M for eight of ten calibration images" in page
    assert ", merging as many tokens in every image." in render(variants()["tokens merge alike"])
    assert "merging" not in render(variants()["no gates"])


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
        "tokens follow the image": make_report(dataclasses.replace(manifest(gated=False), tokens=TOKENS)),
        "tokens merge alike": make_report(dataclasses.replace(manifest(gated=False), original=MERGED)),
        "48 branches": make_report(deep),
        "all of it": make_report(
            dataclasses.replace(with_errors(facts), files=FILES),
            [measurement(gates=GATES, baselines=BASELINES)],
            bundle_sha256=SHA,
        ),
    }


@pytest.mark.parametrize("name", variants())
def test_every_variant_is_well_formed_and_loads_nothing(name: str) -> None:
    page = render(variants()[name])
    parser = Balance()
    parser.feed(page)
    assert parser.stack == []
    assert not {"link", "iframe", "object", "form"} & set(parser.tags) and parser.tags.count("script") == 1
    assert page.count("<script>") == 1  # no address
    assert not [a for a in parser.attributes if a[0] in ("src", "href", "action") or a[0].startswith("on")]
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
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
    assert "too few runs" in page and "p90" in page
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
    assert page.count("<script") == 1 and page.count("&lt;script&gt;") >= 5


def test_the_page_runs_its_own_script_only() -> None:
    page = render(make_report(manifest()))
    script = re.search(r"<script>(.*?)</script>", page, re.S)
    allowed = re.search(r"script-src 'sha256-([^']+)'", page)
    assert script and allowed
    assert base64.b64decode(allowed[1]) == hashlib.sha256(script[1].encode()).digest()
    assert "default-src 'none'" in page and "unsafe-eval" not in page


def colours(dark: bool) -> dict[str, str]:
    style = STYLE.read_text(encoding="utf-8")
    light, _, rest = style.partition("@media (prefers-color-scheme: dark)")
    found = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", light))
    return found | dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", rest.partition("* {")[0])) if dark else found


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    ("ink", "ground"),
    [
        *((ink, ground) for ink in ("ink", "soft", "blue-text") for ground in ("page", "card")),
        *((ink, "card") for ink in ("green", "red", "amber")),
        ("green", "good"),
        ("red", "bad"),
        ("amber", "doubt"),
        ("soft", "slot"),
        ("page", "ink"),
    ],
)
def test_every_text_stands_out_from_what_is_behind_it(ink: str, ground: str, dark: bool) -> None:
    palette = colours(dark)
    low, high = sorted((luminance(palette[ink]), luminance(palette[ground])))
    assert (high + 0.05) / (low + 0.05) >= 4.5


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


def test_the_first_screen_is_what_one_decides_from() -> None:
    page = render(variants()["all of it"])
    first = page[: page.index("<section")]
    for told in ("on Great CPU 9000", "2.00× as fast", "dense float: 8.00 ms", "70.0 MB", "proven of it: 420 kB"):
        assert told in first
    assert "−0.7 points" in first.replace("-0.7", "−0.7") and "n = 1000" in page
    unmeasured = render(variants()["not measured"])
    assert "run edgevit profile on the device" in unmeasured and "--against MODEL" in unmeasured


def test_every_picture_comes_for_a_phone_too_with_its_figures() -> None:
    drawn = figures(variants()["all of it"])
    assert set(drawn) == {
        *("memory-bound", "memory-over-run", "latency", "cost-per-image", "speed"),
        *("open-rates", "branch-errors", "accuracy", "size-and-macs", "size-tree"),
    }
    for picture in drawn.values():
        assert 'viewBox="0 0 340 ' in picture.narrow and 'viewBox="0 0 920 ' in picture.wide
        assert picture.data.rows and all(len(row) == len(picture.data.head) for row in picture.data.rows)
    assert drawn["cost-per-image"].data.rows[1] == ["1", "2", ".xx."]
    assert drawn["size-tree"].data.rows[1] == ["model", "5000700"]


def test_what_was_not_timed_says_why_and_is_text() -> None:
    page = render(variants()["all of it"])
    assert "it failed &lt;b&gt;" in page and "2.00×" in page


def test_a_slower_build_does_not_look_faster() -> None:
    slow = dataclasses.replace(BASELINES[0], cpu=latency([2.0]))
    page = render(make_report(manifest(), [measurement(baselines=(slow,))], bundle_sha256=SHA))
    assert 'class="tile failed"' in page and "0.50× as fast" in page


def test_what_a_stranger_wrote_breaks_no_page() -> None:
    deep = BundleFile(path="/".join("d" * 900), bytes=5, sha256="0" * 64)
    wild = OperatingPoint(
        effort=1e300,
        macs=-5.0,
        worst_macs=-9,
        branches=-1.0,
        images=0,
        agreement=Fraction(hits=0, images=0, value=7.0, low=-3.0, high=9.0),
    )
    facts = manifest()
    branches = tuple(dataclasses.replace(branch, error=-1e9) for branch in facts.branches)
    strange = dataclasses.replace(facts, files=(deep,), points=(wild, wild), branches=branches)
    for expected in (0.0, -1.0):
        measured = measurement(baselines=BASELINES, expected_cpu_ms=expected)
        assert "<main>" in render(make_report(strange, [measured], bundle_sha256=SHA))


def merging(**changes: Any) -> Report:
    facts = dataclasses.replace(manifest(gated=False), tokens=TOKENS)
    return make_report(facts, [measurement(tokens=((64,), (40,), (56,)), **changes)], bundle_sha256=SHA)


def test_cost_per_image_is_shown_of_tokens() -> None:
    page = render(merging())
    assert "of 3 images the easiest keeps 40, the hardest 64." in page
    picture = figures(merging())["tokens-per-image"]
    assert list(picture.data.head) == ["image", "after b00_mhsa"] and picture.data.rows[1] == ["1", "40"]
    assert picture.wide.count("tokens left after b00_mhsa") == 3
    assert "fewest tokens" in figures(merging())["latency"].wide and ">all skipped<" not in page
    alike = dataclasses.replace(merging(), measurements=(measurement(tokens=((40,), (40,))),))
    assert "tokens-per-image" not in figures(alike)


def test_images_are_ordered_by_the_tokens_that_they_keep() -> None:
    images = np.zeros((3, 32, 32, 3), np.uint8)
    shown = thumbs(images, measurement(tokens=((64,), (40,), (56,)), gates=GATES[:3]))
    assert [[each.caption for each in row.pictures] for row in shown] == [["40 tokens"], ["64 tokens"]]
    several = measurement(tokens=((60, 20), (50, 40), (40, 10)), gates=GATES[:3])
    captions = [[each.caption for each in row.pictures] for row in thumbs(images, several)]
    assert captions == [["40, 10 tokens"], ["50, 40 tokens"]]  # of all points: the last alone orders nothing


@pytest.mark.parametrize(("peak", "under"), [(290_000, False), (395_000, True)])
def test_the_peak_is_named_clear_of_the_line_of_the_bound(peak: int, under: bool) -> None:
    """Its words stand above the curve; below it where the dashed line would go through them."""
    points = (MemoryPoint(time_ms=0.1, bytes=200_000, where="stem"), MemoryPoint(time_ms=2.0, bytes=peak, where="head"))
    view = MemoryView(of="runtime", points=points, spans=(), peak_bytes=peak, limit_bytes=400_000)
    drawn = pictures.memory_over_run(view)
    mark = re.search(r'<circle[^>]* cy="([\d.]+)"[^>]*class="peak"', drawn)
    label = re.search(r'<text[^>]* y="([\d.]+)"[^>]*>peak ', drawn)
    assert mark and label and (float(label[1]) > float(mark[1])) is under


def test_what_the_accuracy_of_efforts_is_stands_on_the_picture() -> None:
    share = Fraction(hits=9, images=10, value=0.9, low=0.6, high=1.0)
    points = tuple(dataclasses.replace(point, agreement=share) for point in POINTS)
    report = make_report(dataclasses.replace(manifest(), points=points), bundle_sha256=SHA)
    picture = figures(report)["effort"]
    for drawn in (picture.wide, picture.narrow):
        assert f">{report.effort_metric}</text>" in drawn


@pytest.mark.parametrize("tokens", [((64, 40),), ((),)])
def test_tokens_that_are_none_are_refused(tokens: tuple[tuple[int, ...], ...]) -> None:
    facts = dataclasses.replace(manifest(gated=False), tokens=TOKENS)
    with pytest.raises(BundleError, match="not one for each of the 1 points where they merge"):
        make_report(facts, [measurement(tokens=tokens)], bundle_sha256=SHA)


POINTS = tuple(
    OperatingPoint(effort=effort, name=name, macs=macs, worst_macs=int(macs), branches=4.0, images=64)
    for effort, name, macs in NAMED
)


def test_points_show_times_where_they_were_measured_and_which_are_one() -> None:
    share = Fraction(hits=9, images=10, value=0.9, low=0.6, high=1.0)
    points = tuple(dataclasses.replace(point, agreement=share) for point in POINTS)
    facts = dataclasses.replace(manifest(), points=points)
    before = render(make_report(facts))
    assert "Accuracy against cost, over effort" in before and "dearest image</" not in before
    assert "fastest and fast are one point" in before
    timed = PointLatency(
        name="balanced",
        effort=0.0,
        branches_open=4.0,
        expected_wall_ms=9.0,
        expected_cpu_ms=3.0,
        worst_wall_ms=9.5,
        worst_cpu_ms=3.5,
    )
    report = make_report(facts, [measurement(points=(timed,))], bundle_sha256=SHA)
    page = render(report)
    assert "Accuracy against time, over effort" in page and "Times are CPU time on Great CPU 9000" in page
    assert [(point.time_ms, point.worst_ms) for point in report.efforts] == [(None, None)] * 2 + [(3.0, 3.5)]
    assert "ms an image takes" in figures(report)["effort"].wide


def test_the_time_says_at_which_effort_it_was_measured() -> None:
    facts = dataclasses.replace(manifest(), points=POINTS)
    page = render(make_report(facts, [measurement(effort=-2.0)], bundle_sha256=SHA))
    assert "at effort -2 (fastest)" in page
    assert "at effort" not in render(make_report(facts, [measurement()], bundle_sha256=SHA))


def test_an_effort_above_every_threshold_is_a_word() -> None:
    share = Fraction(hits=9, images=10, value=0.9, low=0.6, high=1.0)
    efforts = (-1e30, 0.0, 1e30)  # of fastest, fast and balanced
    points = (
        dataclasses.replace(point, agreement=share, effort=effort)
        for point, effort in zip(POINTS, efforts, strict=False)
    )
    facts = dataclasses.replace(manifest(), points=tuple(points))
    report = make_report(facts, [measurement(effort=1e30)], bundle_sha256=SHA)
    shown = (render(report), as_csv(figures(report)["effort"]), as_markdown(report))
    assert all("infinity" in each and "e+30" not in each for each in shown)
    assert "at effort infinity (balanced)" in shown[0] and "fastest: effort -infinity," in shown[0]


@pytest.mark.parametrize("gates", [("111",), ("1110", "11102"), ("111x",), ("1110", "")])
def test_gates_that_are_none_are_refused(gates: tuple[str, ...]) -> None:
    with pytest.raises(BundleError, match="each of the 4 branches; run `edgevit profile` again"):
        make_report(manifest(), [measurement(gates=gates)], bundle_sha256=SHA)
