"""A small random Program for tests: numpy only, float weights scaled so that every branch and gate matters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgevit.program.program import Program, expected_shapes
from edgevit.program.spec import (
    Activation,
    BranchSpec,
    GateSpec,
    HeadSpec,
    ImageSpec,
    PoolKind,
    ProgramSpec,
    StemSpec,
)
from edgevit.program.tokens import read_plan, with_merges


def tiny_spec(
    *,
    gated: bool = False,
    gate_pool: PoolKind | None = None,
    depth: int = 2,
    dim: int = 32,
    heads: int = 2,
    hidden: int | None = None,
    classes: int = 10,
    image: tuple[int, int] = (32, 32),
    patch: int = 8,
    prefix: int = 1,
    pool: PoolKind | None = None,
    head_prefix: int = 1,
    activation: Activation = "gelu",
    qk_norm: bool = False,
    stem_norm: bool = False,
    pooled_norm: bool | None = None,
    skip: bool = False,
    removed: tuple[str, ...] = (),
    labels: tuple[str, ...] = (),
) -> ProgramSpec:
    """The spec of `tiny_program`. `pool` defaults to the class token where there is one, `pooled_norm` to mean pooling;
    `skip` gives skip rows to every gated or removed branch; `removed` names branches with no unit left."""
    pool = pool or ("prefix" if prefix else "mean")
    pooled_norm = pool == "mean" if pooled_norm is None else pooled_norm
    hidden = 2 * dim if hidden is None else hidden
    gate = GateSpec(pool=gate_pool or ("prefix" if prefix else "mean"), threshold=0.0) if gated else None
    head_dim = dim // heads
    branches = []
    for block in range(depth):
        for kind, units in (("mhsa", heads), ("ffn", hidden)):
            name = f"b{block:02d}_{kind}"
            gone = name in removed
            shared: dict[str, Any] = {
                "name": name,
                "kept": () if gone else tuple(range(units)),
                "units_total": units,
                "gate": None if gone else gate,
                "skip": skip and (gated or gone),
            }
            if kind == "mhsa":
                branch = BranchSpec(**shared, kind="mhsa", head_dim=head_dim, scale=head_dim**-0.5, qk_norm=qk_norm)
            else:
                branch = BranchSpec(**shared, kind="ffn", activation=activation)
            branches.append(branch)
    return ProgramSpec(
        name="tiny",
        image=ImageSpec(
            height=image[0],
            width=image[1],
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            crop_pct=0.9,
            interpolation="bicubic",
        ),
        dim=dim,
        norm_eps=1e-6,
        qk_norm_eps=1e-6,
        stem=StemSpec(kind="patch", patch=patch, prefix=prefix, norm=stem_norm),
        branches=tuple(branches),
        head=HeadSpec(
            pool=pool, prefix=head_prefix, norm=not pooled_norm, pooled_norm=pooled_norm, classes=classes, linear=True
        ),
        origin={"source": "generated"},
        labels=labels,
    )


def tiny_weights(spec: ProgramSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays of a spec: Linear weights of variance 1 / fan_in, so that a branch is about as large as the stream.

    Gate logits have a spread of about 1 around 0: over a few images each gate is open for some and closed for others.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for name, shape in expected_shapes(spec).items():
        draw = rng.standard_normal(shape)
        if name.endswith("gate.weight"):
            array = draw / shape[0] ** 0.5
        elif name.endswith("merge.shift"):
            array = 0.5 * draw
        elif len(shape) == 1 and name.endswith(".weight"):
            array = 1 + 0.2 * draw
        elif len(shape) == 1:
            array = 0.1 * draw
        elif name.endswith(".weight"):
            array = draw / shape[0] ** 0.5
        else:
            array = 0.5 * draw
        arrays[name] = array.astype(np.float32)
    return arrays


def tiny_program(seed: int = 0, **options: Any) -> Program:
    """A small random Program; see `tiny_spec` for the options (`gated=True`, `depth=2`, `dim=32`, `heads=2`, ...).

    `tokens` is a plan of merges, such as `1:4,2:3`; with `shift` its points have a row that guards tokens, and with
    `stepped` pairs that follow the image are counted in steps of 8 as in earlier Programs, whatever rows that leaves.
    """
    tokens, shift, stepped = options.pop("tokens", ""), options.pop("shift", False), options.pop("stepped", False)
    spec = tiny_spec(**options)
    if tokens:
        counted: dict[str, Any] = {"step": 8, "whole": False} if stepped else {}
        spec = with_merges(spec, [replace(point, shift=shift, **counted) for point in read_plan(tokens, spec)])
    return Program(spec=spec, weights=tiny_weights(spec, seed))


def tiny_images(spec: ProgramSpec, count: int = 4, seed: int = 0) -> np.ndarray:
    """Random smooth-ish images, uint8 RGB `[count, height, width, 3]`, of the size the spec asks for."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(count, 4, 4, 3))
    rows, columns = -(-spec.image.height // 4), -(-spec.image.width // 4)
    fine = np.repeat(np.repeat(coarse, rows, axis=1), columns, axis=2)[:, : spec.image.height, : spec.image.width]
    noise = rng.integers(-20, 21, size=fine.shape)
    images: np.ndarray = np.clip(fine + noise, 0, 255).astype(np.uint8)
    return images
