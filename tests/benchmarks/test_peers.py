import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peer_builds import normalise
from benchmarks.peer_candidates import Case
from benchmarks.peer_optional import OPTIONAL
from benchmarks.peer_report import Accuracy, Report, Row, table
from benchmarks.peers import _float_machine_code
from benchmarks.timing import Ratio
from edgevit.backends import onnx_backend
from edgevit.images.image_set import ImageSet
from edgevit.measure.environment import environment, snapshot
from edgevit.onnx_form.assemble import assemble
from edgevit.verify.accuracy import fraction, paired_drop
from tests.backends.tvm.available import needs_tvm
from tests.tiny import tiny_images, tiny_program

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_peers_get_what_timm_would_feed() -> None:
    spec = tiny_program().spec.image
    images = tiny_images(tiny_program().spec, 3)
    expected = (images.transpose(0, 3, 1, 2) / 255.0 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert (spec.mean, spec.std) == (MEAN, STD)
    got = normalise(images, spec)
    assert got.dtype == np.float32 and got.flags.c_contiguous
    np.testing.assert_allclose(got, expected, atol=1e-6)


def accuracy(right: int, agreed: int) -> Accuracy:
    before, after = np.arange(1000) < 750, np.arange(1000) < right
    return Accuracy(top1=fraction(after), drop=paired_drop(before, after), agreement=fraction(np.arange(1000) < agreed))


def row(**changed: Any) -> Row:
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
        to_fastest_peer=Ratio(value=0.85, low=0.84, high=0.86),
        fastest_peer="p",
        accuracy=accuracy(750, 1000),
    )
    return replace(base, **changed)


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({}, 0),
        ({"to_fastest_peer": Ratio(value=0.86, low=0.8, high=0.9)}, 1),
        ({"to_hand_built": Ratio(value=0.92, low=0.9, high=0.93)}, 0),
        ({"to_hand_built": Ratio(value=0.93, low=0.92, high=0.94)}, 1),
        ({"runtime": "OV", "to_fastest_peer": Ratio(value=0.95, low=0.9, high=1.0)}, 0),
        ({"runtime": "OV", "to_fastest_peer": Ratio(value=0.96, low=0.9, high=1.0)}, 1),
        ({"accuracy": accuracy(741, 1000)}, 1),
        ({"accuracy": accuracy(742, 950)}, 0),
        ({"accuracy": accuracy(750, 949)}, 1),
        ({"share": 0.7, "runtime": "TVM", "to_fastest_peer": Ratio(value=0.42, low=0.4, high=0.43)}, 0),
        ({"share": 0.7, "runtime": "TVM", "to_fastest_peer": Ratio(value=0.43, low=0.4, high=0.44)}, 1),
        ({"share": 0.7, "accuracy": accuracy(740, 900)}, 0),
        ({"share": 0.7, "accuracy": accuracy(739, 900)}, 1),
    ],
)
def test_a_missed_figure_is_called_so(changed: dict[str, Any], missed: int) -> None:
    machine = environment(
        snapshot(), snapshot(), runtime="r", runtime_version="v", inference_precision="f32", threads=1
    )
    report = Report(command="c", machine=machine, runs=1, images=1000, calibration=1, rows=(row(**changed),))
    text = table(report)
    assert text.count("**missed**") == missed
    assert text.count(": met") == 3 + ("to_hand_built" in changed) - ("share" in changed) - missed


@pytest.mark.parametrize(("share", "told"), [(0.85, "met"), (0.86, "**missed**")])
def test_a_float_build_stands_beside_float(share: float, told: str) -> None:
    machine = environment(
        snapshot(), snapshot(), runtime="r", runtime_version="v", inference_precision="f32", threads=1
    )
    plain = row(
        name="edgevit float, TVM",
        runtime="TVM",
        int8=False,
        to_float=Ratio(value=share, low=share, high=share),
        to_fastest_peer=None,
        fastest_peer=None,
    )
    text = table(Report(command="c", machine=machine, runs=1, images=1000, calibration=1, rows=(plain,)))
    assert f"- edgevit float, TVM: {share:.3f} of ORT fp32 (at most 0.85): {told}." in text


@needs_tvm
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the targets tried are for x86-64")
def test_the_target_that_this_cpu_is_made_for_is_built_in_float_too(tmp_path: Path) -> None:
    program = tiny_program()
    images = tiny_images(program.spec, 3)
    every = ImageSet(images=images, labels=None, names=(), unreadable=(), digest="0" * 64, source=Path("tiny"))
    case = Case(key="tiny", program=program, calibration=images, evaluation=every, folder=tmp_path)
    (plain,) = _float_machine_code(case)
    assert (plain.name, plain.runtime, plain.own, plain.int8) == ("edgevit float, TVM", "TVM", True, False)
    runtime = onnx_backend("onnxruntime")
    runtime.compile(assemble(program, gating="open"), tmp_path, formats=("onnx",))
    run, reference = plain.load(1), runtime.load(tmp_path)
    for image in images:
        np.testing.assert_allclose(run(image[None]), reference.run(image[None])[0], atol=1e-4)


def test_a_row_without_accuracy_says_nothing_about_it() -> None:
    machine = environment(
        snapshot(), snapshot(), runtime="r", runtime_version="v", inference_precision="f32", threads=1
    )
    bare = row(accuracy=None)
    text = table(Report(command="c", machine=machine, runs=1, images=0, calibration=1, rows=(bare,)))
    assert text.count(": met") == 1 and "agreement 1" not in text


def test_what_a_cpu_without_vnni_hides_is_shown_and_judged_too() -> None:
    machine = environment(
        snapshot(), snapshot(), runtime="r", runtime_version="v", inference_precision="f32", threads=1
    )
    both = row(accuracy=accuracy(700, 800), exact=accuracy(750, 999))
    text = table(Report(command="c", machine=machine, runs=1, images=1000, calibration=1, rows=(both,)))
    assert "| **edgevit t**, exact | | | | | 75.0% | +0.0" in text
    assert text.count("**missed**") == 2 and text.count(": met") == 3


def test_a_peer_that_is_not_installed_is_named_with_its_extra() -> None:
    machine = environment(
        snapshot(), snapshot(), runtime="r", runtime_version="v", inference_precision="f32", threads=1
    )
    shown = row(name="MNN, 8-bit weights", runtime="MNN", own=False, int8=False, to_fastest_peer=None)
    text = table(Report(command="c", machine=machine, runs=1, images=0, calibration=1, rows=(shown,)))
    took = {peer.runtime: peer.took in text for peer in OPTIONAL}
    assert took == {"LiteRT": False, "ExecuTorch": False, "ncnn": False, "MNN": True}
    assert (
        "not shown, with the extra that brings each: LiteRT (`bench-litert`), ExecuTorch (`bench-peers`), ncnn" in text
    )
    assert "MNN (`" not in text


def test_a_peer_lacking_one_of_its_modules_is_not_installed() -> None:
    litert = OPTIONAL[0]
    assert replace(litert, modules=("numpy",)).installed()
    assert not replace(litert, modules=("numpy", "no_such_runtime")).installed()
