from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.peer_builds import normalise
from benchmarks.peer_report import Report, Row, table
from benchmarks.timing import Ratio
from edgevit.measure.host import environment, snapshot
from edgevit.verify.accuracy import fraction, paired_drop
from tests.tiny import tiny_images, tiny_program


def test_peers_get_what_timm_would_feed() -> None:
    import torch
    from torchvision.transforms.functional import normalize

    spec = tiny_program().spec.image
    images = tiny_images(tiny_program().spec, 3)
    expected = normalize(torch.from_numpy(images).permute(0, 3, 1, 2) / 255, list(spec.mean), list(spec.std))
    got = normalise(images, spec)
    assert got.dtype == np.float32 and got.flags.c_contiguous
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-6)


def row(**changed: Any) -> Row:
    right = np.arange(1000) < 750
    certain = Ratio(value=1.0, low=1.0, high=1.0)
    base = Row(
        model="m",
        name="edgevit t",
        runtime="ORT",
        own=True,
        int8=True,
        bytes=10,
        cpu_median_ms=1.0,
        wall_median_ms=1.0,
        to_float=certain,
        to_fastest_peer=certain,
        fastest_peer="p",
        top1=fraction(right),
        drop=paired_drop(right, right),
        agreement=fraction(np.ones(1000, bool)),
    )
    return replace(base, **changed)


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({}, 0),
        ({"to_fastest_peer": Ratio(value=1.06, low=1.0, high=1.1)}, 1),
        ({"drop": paired_drop(np.arange(1000) < 750, np.arange(1000) < 741)}, 1),
        ({"drop": paired_drop(np.arange(1000) < 750, np.arange(1000) < 742)}, 0),
        ({"agreement": fraction(np.arange(1000) < 949)}, 1),
    ],
)
def test_a_missed_figure_is_called_so(changed: dict[str, Any], missed: int) -> None:
    machine = environment(
        snapshot(), snapshot(), runtime="r", runtime_version="v", inference_precision="f32", threads=1
    )
    report = Report(command="c", machine=machine, runs=1, images=1000, calibration=1, rows=(row(**changed),))
    text = table(report)
    assert text.count("**missed**") == missed
    assert text.count(": met") == 3 - missed


def test_a_row_without_accuracy_says_nothing_about_it() -> None:
    machine = environment(
        snapshot(), snapshot(), runtime="r", runtime_version="v", inference_precision="f32", threads=1
    )
    bare = row(top1=None, drop=None, agreement=None)
    text = table(Report(command="c", machine=machine, runs=1, images=0, calibration=1, rows=(bare,)))
    assert text.count(": met") == 1 and "agreement 1" not in text
