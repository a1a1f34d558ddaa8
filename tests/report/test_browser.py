"""Pages in a headless Chromium: they draw, sort and tell, at a desk and on a phone, in both themes, without a word."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevit.report import comparison_forms, index
from edgevit.report.comparison import Subject, compare
from edgevit.report.html import render
from edgevit.report.limits import read_limit
from edgevit.report.thumbs import thumbs
from edgevit.report.view import make_report
from edgevit.schema.claims import Fraction
from edgevit.schema.measurement import PointLatency
from edgevit.schema.points import OperatingPoint
from tests.absent import unavailable
from tests.browser import MISSING, PROGRAM, Browser, browser
from tests.report.sample import SHA, manifest, measurement
from tests.report.test_html import BASELINES, FILES, GATES, merging, with_errors

DESK, PHONE = (1440, 900), (390, 844)
NAMES = ("report", "plain", "merging", "compare", "index")
LONG = "a_model_with_a_name_of_no_end_" * 4
POINTS = tuple(
    OperatingPoint(
        effort=effort,
        name=name,  # type: ignore[arg-type]
        macs=macs,
        worst_macs=int(1.2 * macs),
        branches=2.0,
        images=50,
        agreement=Fraction(hits=40, images=50, value=share, low=0.5, high=1.0),
    )
    for effort, name, macs, share in (
        (-2.0, "fastest", 1e5, 0.7),
        (0.0, "balanced", 2e5, 0.9),
        (9.0, "full", 3e5, 0.95),
    )
)


TIMES = tuple(
    PointLatency(
        name=name,  # type: ignore[arg-type]
        effort=effort,
        branches_open=2.0,
        expected_wall_ms=1.1 * ms,
        expected_cpu_ms=ms,
        worst_wall_ms=1.3 * ms,
        worst_cpu_ms=1.2 * ms,
    )
    for name, effort, ms in (("fastest", -2.0, 2.0), ("balanced", 0.0, 4.0), ("full", 9.0, 4.1))
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    facts = dataclasses.replace(with_errors(manifest()), files=FILES, points=POINTS)
    limited = dataclasses.replace(facts, target=dataclasses.replace(facts.target, ram_mb=1.0, latency_ms=900.0))
    measured = measurement(gates=GATES, baselines=BASELINES, bundle=LONG, points=TIMES)
    report = make_report(dataclasses.replace(limited, name=LONG), [measured], bundle_sha256=SHA)
    images = np.random.default_rng(0).integers(0, 256, (len(GATES), 32, 32, 3), dtype=np.uint8)
    one, two = Subject(name="one", manifest=facts, measurement=measured), Subject(name=LONG, manifest=limited)
    slower = dataclasses.replace(two, measurement=measurement(expected_cpu_ms=5.0))
    limits = [read_limit(text) for text in ("latency>+5%", "size>+1kB")]
    entries = [index.Entry(name=n, file=f"{n}.html", manifest=facts, measurement=measured) for n in ("one", "two")]
    content = {
        "report": render(dataclasses.replace(report, thumbs=thumbs(images, measured))),
        "plain": render(make_report(manifest(gated=False))),
        "merging": render(merging()),
        "compare": comparison_forms.render(compare([one, slower], limits)),
        "index": index.render(entries, "compare.html"),
    }
    for name, text in content.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in content}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if PROGRAM is None:
        unavailable(MISSING)
    with browser() as found:
        yield found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [DESK, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_said_cut_off_or_scrolled_sideways(
    chromium: Browser, pages: dict[str, Path], name: str, size: tuple[int, int], dark: bool
) -> None:
    chromium.open(pages[name], *size, dark=dark)
    assert chromium.said == []
    assert chromium.run("document.documentElement.scrollWidth") <= size[0]
    wider = "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth + 1).length"
    assert chromium.run(wider) == 0
    ground = chromium.run("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(16, 21, 27)") is dark
    assert pages[name].stat().st_size < 2_000_000


@pytest.mark.parametrize(("name", "pictures"), [("report", 11), ("merging", 6)])
@pytest.mark.parametrize("size", [DESK, PHONE])
def test_every_picture_is_drawn_and_its_words_stay_inside(
    chromium: Browser, pages: dict[str, Path], size: tuple[int, int], name: str, pictures: int
) -> None:
    chromium.open(pages[name], *size)
    drawn = chromium.run(
        """[...document.querySelectorAll('figure svg')].filter((s) => s.clientWidth > 0).map((svg) => {
             const box = svg.getBoundingClientRect();
             const out = [...svg.querySelectorAll('text')].filter((t) => {
               const b = t.getBoundingClientRect();
               return b.left < box.left - 2 || b.right > box.right + 2 || b.bottom > box.bottom + 2;
             }).map((t) => t.textContent);
             return [svg.closest('figure').dataset.name,
                     svg.querySelectorAll('rect, circle, path, line').length, box.width, out];
           })"""
    )
    assert len(drawn) == pictures
    for name, marks, width, outside in drawn:
        assert marks >= 2 and width > 250, name
        assert outside == [], (name, outside)


def rows(chromium: Browser, column: int) -> list[str]:
    script = (
        f"[...document.querySelectorAll('table.branches tbody tr')].map((r) => r.cells[{column}].textContent.trim())"
    )
    found: list[str] = chromium.run(script)
    return found


def test_tables_sort_both_ways_by_what_a_cell_means(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["report"])
    assert rows(chromium, 0) == ["b00_mhsa", "b00_ffn", "b01_mhsa", "b01_ffn"]
    press = "document.querySelectorAll('table.branches th button')[{}].click()"
    chromium.run(press.format(5))
    assert rows(chromium, 5) == ["3.50 ms", "2.60 ms", "2.50 ms", "–"]
    chromium.run(press.format(5))
    assert rows(chromium, 5) == ["2.50 ms", "2.60 ms", "3.50 ms", "–"]
    assert chromium.run("document.querySelectorAll('table.branches th')[5].ariaSort") == "ascending"
    chromium.run(press.format(0))
    assert rows(chromium, 0) == ["b00_ffn", "b00_mhsa", "b01_ffn", "b01_mhsa"]
    assert chromium.said == []


def test_marks_and_heads_tell_what_they_are(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["report"])
    for selector, told in (
        ("figure[data-name=speed] .wide rect", "this build: 4.00 ms"),
        ("figure[data-name=effort] .wide circle", "fastest: effort -2, 70.0 %, 100 k MACs on average, at most 120 k"),
        ("figure[data-name=effort] .wide circle", "2.00 ms expected, at most 2.40 ms"),
        ("figure[data-name=memory-over-run] .wide .hit", "stem/y: 300 kB"),
        ("table.branches th[data-tip]", "attention (mhsa)"),
    ):
        chromium.point_at(selector)
        assert chromium.run("document.getElementById('tip').hidden") is False
        assert told in chromium.run("document.getElementById('tip').textContent")
    chromium.point_at("h1")
    assert chromium.run("document.getElementById('tip').hidden") is True


SAVED = """new Promise((done) => {
  const got = {}, wait = ['svg', 'png', 'csv'];
  const click = HTMLAnchorElement.prototype.click;
  HTMLAnchorElement.prototype.click = async function () {
    const blob = await (await new Response(window.blobs.get(this.href))).blob();
    got[this.download] = [blob.size, (await blob.slice(0, 60).text())];
    if (Object.keys(got).length === wait.length) { HTMLAnchorElement.prototype.click = click; done(got); }
  };
  window.blobs = new Map();
  const make = URL.createObjectURL;
  URL.createObjectURL = (blob) => { const url = make(blob); window.blobs.set(url, blob); return url; };
  document.querySelectorAll('figure[data-name=latency] .saves button').forEach((b) => b.click());
})"""


def test_a_picture_is_saved_in_three_forms(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["report"])
    saved = chromium.run(SAVED)
    assert set(saved) == {"latency.svg", "latency.png", "latency.csv"}
    assert saved["latency.svg"][1].startswith("<svg") and saved["latency.png"][1][1:4] == "PNG"
    assert saved["latency.csv"][1].startswith("path,run,wall ms,CPU ms\n") and saved["latency.png"][0] > 5000
    assert chromium.said == []


def axe() -> str:
    """Return the script of axe-core, as its Python package carries it."""
    spec = importlib.util.find_spec("axe_core_python")
    if spec is None or not spec.submodule_search_locations:
        unavailable("needs axe-core-python, which the dev extra installs")
    return (Path(spec.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "dark"), [(DESK, False), (DESK, True), (PHONE, False), (PHONE, True)])
def test_axe_finds_nothing(
    chromium: Browser, pages: dict[str, Path], name: str, size: tuple[int, int], dark: bool
) -> None:
    chromium.open(pages[name], *size, dark=dark)
    chromium.run(f"{axe()}; 0")
    found: list[dict[str, Any]] = chromium.run("axe.run().then((r) => r.violations)")
    told = [(each["id"], each["impact"], [node["html"][:120] for node in each["nodes"]]) for each in found]
    assert told == [], json.dumps(told, indent=2)


def test_a_page_of_a_thousand_images_stays_small() -> None:
    facts = manifest(depth=12, removed=())
    names = [branch.name for branch in facts.branches]
    gates = tuple("".join("1" if (i * 7 + j) % 5 else "0" for j in range(len(names))) for i in range(1000))
    report = make_report(facts, [measurement(gates=gates)], bundle_sha256=SHA)
    assert len(render(report).encode()) < 2_000_000
