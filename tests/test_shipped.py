"""The Program that ships: small, credited, really pruned and gated, and `edgevit build` makes a bundle of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from edgevit import ondevice
from edgevit.backends.reference import reference
from edgevit.data.images import load_images
from edgevit.job import Job, default_program, run_build
from edgevit.lower.assemble import assemble
from edgevit.models.program import Program, load_program

LIMIT_BYTES = 12_000_000


@pytest.fixture(scope="module")
def program() -> Program:
    return load_program(default_program())


def test_it_is_small_and_stored_in_float16() -> None:
    assert sum(p.stat().st_size for p in default_program().iterdir()) <= LIMIT_BYTES
    with safe_open(default_program() / "weights.safetensors", "numpy") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {np.dtype("float16")}  # noqa: SIM118


def test_it_is_credited_pruned_and_gated(program: Program) -> None:
    assert program.spec.origin["license"] == "apache-2.0"
    assert len(program.spec.labels) == program.spec.head.classes == 1000
    assert sum(b.units for b in program.spec.branches) < sum(b.units_total for b in program.spec.branches)
    assert any(b.gate for b in program.spec.branches)


@pytest.mark.parametrize("target", ["x86-64-onnxruntime", "x86-64-openvino"])
def test_it_builds_verifies_and_takes_different_paths(tmp_path: Path, target: str) -> None:
    built = run_build(Job(model=None, target=target, limit=24, output=tmp_path / "bundle"))
    assert all(claim.held for claim in built.manifest.claims)
    assert {claim.name for claim in built.manifest.claims} == {"coverage", "parity", "skip", "bound", "accuracy"}
    macs = built.manifest.macs
    assert macs.all_skipped < macs.expected < macs.all_open < macs.dense
    verified = ondevice.verify(built.archive)
    assert {g.path for g in verified.golden} == {"all_open", "all_skipped", "real"}


def test_it_recognises_real_photographs(data: Path, program: Program) -> None:
    images = load_images(data / "imagenet-val-1000.tar", program.spec.image, limit=200, labelled=True)
    assert images.labels is not None
    runner = reference(assemble(program))
    classes = np.array([runner.run(image[None])[0].argmax() for image in images.images])
    # 68.1 % on all 1000 images (reports/reference/shipped.json); 200 have a standard error of 3.3 points.
    assert (classes == images.labels).mean() > 0.58


def test_ungated_it_computes_every_branch(program: Program) -> None:
    fixed = tuple(replace(b, gate=None) for b in program.spec.branches)
    plain = program.with_weights({}, replace(program.spec, branches=fixed))
    image = np.full((1, 224, 224, 3), 127, dtype=np.uint8)
    opened, _ = reference(assemble(program)).run(image, 1e9)
    np.testing.assert_allclose(reference(assemble(plain)).run(image)[0], opened, atol=1e-4)
