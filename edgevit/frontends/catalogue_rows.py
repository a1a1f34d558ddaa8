"""Try models one by one, without memory for their weights, and say for each whether it fits: rows of the catalogue."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from edgevit.errors import UnsupportedModelError
from edgevit.frontends.catalogue import FILE, Catalogue, Entry, catalogue_text
from edgevit.frontends.refusal import refusal
from edgevit.frontends.t2t import CONFIGS, t2t_spec, upstream_shapes
from edgevit.frontends.timm_import import timm
from edgevit.frontends.timm_module import meta_model, program_arrays, program_spec
from edgevit.program.macs import total_macs
from edgevit.program.program import expected_shapes
from edgevit.util import strict_json


def all_names() -> tuple[str, ...]:
    """Return every architecture that is tried: all of timm's, and T2T-ViT's."""
    return (*timm.list_models(), *CONFIGS)


def try_all() -> Iterator[Entry]:
    """Yield rows of the catalogue: one per refused architecture, one per set of weights of a fitting one."""
    for architecture in all_names():
        entry = try_model(architecture)
        tagged = timm.list_pretrained(f"{architecture}.*") if entry.fits else []
        yield from map(try_model, tagged) if tagged else (entry,)


def try_model(name: str) -> Entry:
    """Build one model on the meta device, turn it into a Program's spec and arrays, and compare their shapes."""
    if name in CONFIGS:
        spec = t2t_spec(name)
        parameters = sum(math.prod(shape) for shape in upstream_shapes(spec).values())
    else:
        try:
            model = meta_model(name)
        except UnsupportedModelError as error:
            return Entry(name=name, fits=False, reason=str(error))
        reason = refusal(model)
        if reason is not None:
            return Entry(name=name, fits=False, reason=reason)
        spec = program_spec(model, name, {}, published=True)
        with torch.device("meta"), torch.no_grad():
            shapes = {n: tuple(a.shape) for n, a in program_arrays(model, spec).items()}
        if shapes != expected_shapes(spec):
            raise AssertionError(f"{name}: the arrays do not have the shapes of their spec")
        parameters = sum(p.numel() for p in model.parameters())
    return Entry(
        name=name,
        fits=True,
        height=spec.image.height,
        width=spec.image.width,
        patch=spec.stem.patch,
        classes=spec.head.classes if spec.head.linear else 0,
        license=spec.origin.get("license", ""),
        parameters=parameters,
        macs=total_macs(spec, full_rows=True),
    )


def write_catalogue(file: Path = FILE) -> Catalogue:
    """Try every name (about four minutes on one core) and write the table atomically."""
    catalogue = Catalogue(timm=timm.__version__, models=tuple(try_all()))
    strict_json.write_atomic(file, catalogue_text(catalogue))
    return catalogue


if __name__ == "__main__":
    written = write_catalogue()
    fitting = sum(entry.fits for entry in written.models)
    print(f"{FILE.name}: {fitting} of {len(written.models)} models fit (timm {written.timm})")
