"""Builds and devices side by side: what changed first, what cannot be compared, and limits for a script."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from edgevit.errors import ComparisonError
from edgevit.report.comparison import Comparison, Subject, change, compare, summary
from edgevit.report.comparison_forms import as_markdown, render, show
from edgevit.report.figures import NAMES, figures
from edgevit.report.limits import Limit, read_limit
from edgevit.schema.manifest import Manifest
from tests.bundles import RECIPE
from tests.report.sample import ENVIRONMENT, manifest, measurement


def built(model_bytes: int = 100_000, **recipe: Any) -> Manifest:
    facts = manifest()
    sizes = dataclasses.replace(facts.sizes, model_bytes=model_bytes)
    return dataclasses.replace(facts, sizes=sizes, recipe=dataclasses.replace(RECIPE, **recipe))


BEFORE = Subject(name="before", manifest=built(), measurement=measurement())
AFTER = Subject(
    name="after <b>|x",
    manifest=built(50_000, prune=0.3),
    measurement=measurement(expected_cpu_ms=3.0),
)
ELSEWHERE = Subject(
    name="elsewhere", measurement=measurement(environment=dataclasses.replace(ENVIRONMENT, cpu="Small CPU"))
)


def compared(*subjects: Subject, limits: tuple[str, ...] = ()) -> Comparison:
    return compare(subjects, [read_limit(text) for text in limits])


def test_the_largest_change_comes_first() -> None:
    made = compared(BEFORE, AFTER)
    assert [(row.name, change(row, 1)) for row in made.rows[:3]] == [
        ("size", "-50.0 %"),
        ("latency", "-25.0 %"),
        ("p95", ""),
    ] or [row.name for row in made.rows[:2]] == ["size", "latency"]
    assert summary(made) == "after <b>|x against before: size -50.0 %, latency -25.0 %"
    assert [(row.what, row.values) for row in made.made] == [("prune", ("0.0", "0.3"))]
    assert {row.name for row in made.rows} <= set(NAMES)


def test_shares_change_in_points() -> None:
    facts = built()
    worse = tuple(
        dataclasses.replace(row, value=0.704) if (row.model, row.metric) == ("bundle", "top1") else row
        for row in facts.accuracy
    )
    made = compared(BEFORE, Subject(name="b", manifest=dataclasses.replace(facts, accuracy=worse)))
    rows = {row.name: change(row, 1) for row in made.rows}
    assert rows["top1"] == "-4.0 points" and rows["lost"] == "+4.0 points" and rows["size"] == "same"


def test_another_effort_is_another_condition() -> None:
    one, two = Subject(name="one", measurement=measurement()), Subject(name="two", measurement=measurement(effort=-2.0))
    rows = {row.name: row for row in compared(one, two).rows}
    assert rows["latency"].unlike[1] == "effort: 0, and -2" and rows["latency"].changes[1] is None
    assert rows["latency_all_open"].unlike[1] == ""


def test_other_conditions_are_said_and_not_compared() -> None:
    made = compared(BEFORE, ELSEWHERE)
    rows = {row.name: row for row in made.rows}
    assert rows["latency"].changes[1] is None
    assert rows["latency"].unlike[1] == "device: Great CPU 9000, and Small CPU"
    for form in (shown(made), as_markdown(made), render(made)):
        assert "4.00 ms *" in form.replace("\u00a0", " ").replace("\\", "") and "Small CPU" in form
        assert "* elsewhere: time of an image, expected, " in " ".join(form.split()).replace("\\", "")
    fewer = tuple(dataclasses.replace(row, images=10) for row in built().accuracy)
    other = compared(BEFORE, Subject(name="b", manifest=dataclasses.replace(built(), accuracy=fewer)))
    assert "10 labelled images" in {row.name: row for row in other.rows}["top1"].unlike[1]


def test_a_gated_model_is_compared_on_the_same_images_only() -> None:
    images = dataclasses.replace(measurement().images, digest="ef" * 32)
    for gated, unlike in ((True, "images: images cdcdcdcd, and images efefefef"), (False, "")):
        facts = manifest(gated=gated)
        one = Subject(name="a", manifest=facts, measurement=measurement())
        two = Subject(name="b", manifest=facts, measurement=measurement(images=images))
        assert {row.name: row for row in compared(one, two).rows}["latency"].unlike[1] == unlike


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("latency>+5%", ("latency", ">", "relative", 0.05)),
        ("size >= 8 MB", ("size", ">=", "value", 8e6)),
        ("size>+100kB", ("size", ">", "change", 1e5)),
        ("memory>8MiB", ("memory", ">", "value", 8 * 2**20)),
        ("latency<-20%", ("latency", "<", "relative", -0.2)),
        ("p95>0.02s", ("p95", ">", "value", 20.0)),
        ("top1<-1pt", ("top1", "<", "change", -0.01)),
        ("agreement<=95%", ("agreement", "<=", "value", 0.95)),
        ("macs>1.2G", ("macs", ">", "value", 1.2e9)),
    ],
)
def test_limits_are_read(text: str, limit: tuple[Any, ...]) -> None:
    name, operator, kind, amount = limit
    read = read_limit(text)
    assert (read.name, read.compare, read.kind) == (name, operator, kind) and read.amount == pytest.approx(amount)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is not a limit"),
        ("latency", "is not a limit"),
        ("latency>5%+1", "is not a limit"),
        ("__import__('os')>1ms", "is not a limit"),
        ("latency>1e3ms", "is not a limit"),
        ("latnecy>+5%", "nearest: latency"),
        ("latency>5%", "With a sign"),
        ("latency>20", "'' is not a unit of latency; allowed: us, µs, ms, s"),
        ("size>8ms", "not a unit of size"),
        ("top1<-1%", "change in points"),
        ("top1<70", "is a share itself"),
        ("latency==5ms", "is not a limit"),
    ],
)
def test_what_is_no_limit_is_refused_with_what_is_allowed(text: str, told: str) -> None:
    with pytest.raises(ComparisonError, match=told.replace("(", r"\(")):
        read_limit(text)


@pytest.mark.parametrize(
    ("limit", "crossed"),
    [
        ("size<-49%", True),
        ("size>+0%", False),
        ("latency>2.9ms", True),
        ("latency>3.1ms", False),
        ("latency<-1ms", False),
        ("latency<=-1ms", True),
        ("top1<+0pt", False),
    ],
)
def test_a_limit_holds_or_is_crossed(limit: str, crossed: bool) -> None:
    verdict = compared(BEFORE, AFTER, limits=(limit,)).verdicts[0]
    assert verdict.crossed is crossed and verdict.column == AFTER.name
    assert ("crossed" in shown(compared(BEFORE, AFTER, limits=(limit,)))) is crossed


def test_a_change_of_nothing_to_something_is_beyond_any_share() -> None:
    limit = Limit(text="", name="load", compare=">", kind="relative", amount=1.0)
    assert limit.crossed(0.0, 1.0) and not limit.crossed(0.0, 0.0)


def test_a_limit_on_what_cannot_be_told_is_never_kept() -> None:
    bare = Subject(name="bare", manifest=built())
    for subject, limit, told in (
        (bare, "latency>+5%", "time of an image, expected of bare is not known; give a measurement"),
        (ELSEWHERE, "latency>+5%", "other conditions (device: Great CPU 9000, and Small CPU); measure both alike"),
        (ELSEWHERE, "top1<-1pt", "top-1 of elsewhere is not known; build it with --eval"),
        (ELSEWHERE, "size>+5%", "size of the model of elsewhere is not known; give its bundle"),
    ):
        made = compared(BEFORE, subject, limits=(limit, "macs>1"))
        (verdict,) = made.undecided if subject is bare else made.undecided[:1]
        assert verdict.crossed is None and told in verdict.why and verdict not in made.crossed
        for form in (shown(made), as_markdown(made), render(made)):
            assert "not known" in form and "kept" not in form.split("What changed")[0].replace("macs", "")
        assert told.split(" ")[-1] in " ".join(shown(made).split())
    assert not compared(BEFORE, ELSEWHERE, limits=("latency>20ms",)).undecided  # a value needs no other
    with pytest.raises(ComparisonError, match="at least two"):
        compared(BEFORE)


def test_an_agreement_says_with_what() -> None:
    """Of a build whose original is not known it is with its own float model, and no other word may stand there."""
    facts = built()
    original = tuple(
        dataclasses.replace(row, against="original") if row.metric == "agreement" else row for row in facts.accuracy
    )
    known = Subject(name="known", manifest=dataclasses.replace(facts, accuracy=original))
    titles = [
        next(row for row in compared(*pair).rows if row.name == "agreement").title
        for pair in ((BEFORE, Subject(name="b", manifest=facts)), (known, known), (known, BEFORE))
    ]
    assert titles == ["agreement with its own float model", "agreement with the original", "agreement"]


def test_tiles_name_the_columns_they_are_of() -> None:
    assert "before 100 kB → other 50.0 kB" in render(
        compared(BEFORE, BEFORE, Subject(name="other", manifest=AFTER.manifest))
    )
    assert ">100 kB → 50.0 kB<" in render(compared(BEFORE, AFTER))


def test_three_columns_and_other_models() -> None:
    other = Subject(name="other", manifest=dataclasses.replace(built(), name="x", recipe=built(model="deit").recipe))
    made = compared(BEFORE, AFTER, other)
    assert [column.model for column in made.columns] == ["tiny", "tiny", "deit"]
    assert "after <b>|x against before" in summary(made) and "other against before: no figure changed" in summary(made)
    assert "deit" in shown(made)


def shown(made: Comparison) -> str:
    out = io.StringIO()
    show(made, Console(file=out, width=120))
    return out.getvalue()


def test_strings_stay_text_in_every_form() -> None:
    made = compared(BEFORE, AFTER)
    assert r"after \<b\>\|x" in as_markdown(made) and "after &lt;b&gt;|x" in render(made)
    assert "<b>|x" in shown(made) and "after <b>" not in render(made)


def test_every_figure_is_known_of_a_measured_build() -> None:
    known = {figure.name for figure in figures(BEFORE.manifest, BEFORE.measurement) if figure.value is not None}
    assert known >= set(NAMES) - {"p95"}
