"""A build for another processor says of each claim where it was proven."""

from __future__ import annotations

from edgevit.build.elsewhere import OPEN, qualified
from edgevit.schema.claims import Claim, CoverageFigures
from edgevit.schema.target import load_target
from tests.bundles import sample_manifest
from tests.tiny import tiny_program

ARM = load_target("rpi5-onnxruntime")


def test_every_claim_says_on_which_machine_it_was_proven() -> None:
    manifest = sample_manifest(tiny_program(gated=True))
    figures = CoverageFigures(int8=4, planned=4)
    claims = tuple(
        Claim(name=name, held=True, summary="4 of 4", figures=figures if name == "coverage" else None) for name in OPEN
    )
    said, bound = qualified(claims, manifest.bound, ARM, "x86_64")
    for claim in said:
        assert claim.held and claim.summary.startswith("4 of 4; on x86_64 (")
        assert claim.proven_on == "x86_64" and claim.figures == (figures if claim.name == "coverage" else None)
    assert manifest.bound.proven and not bound.proven
    assert bound.bound_bytes == manifest.bound.bound_bytes
    assert "not proven for those of aarch64" in bound.covers


def test_on_the_targets_own_machine_nothing_is_added() -> None:
    manifest = sample_manifest(tiny_program(gated=True))
    assert qualified(manifest.claims, manifest.bound, ARM, "aarch64") == (manifest.claims, manifest.bound)
    here = load_target("x86-64-onnxruntime")
    assert qualified(manifest.claims, manifest.bound, here, "x86_64") == (manifest.claims, manifest.bound)
