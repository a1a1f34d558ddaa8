"""Which checkpoint forms load exactly, model by model, and with which words the rest is refused.

Every cell is tried: the form is written to a file, edgevit makes a Program of it, and its outputs are compared with the
torch module that the checkpoint is of, on real images where there are some.

    python -m benchmarks.checkpoints --out reports/reference
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.checkpoint_forms import FORMS, Made, Subject
from edgevit.errors import EdgevitError
from edgevit.frontends.own_weights import own_program
from edgevit.frontends.timm_import import timm
from edgevit.program.spec import ImageSpec
from edgevit.torch_form.vit import Vit, normalise
from edgevit.util import strict_json

# Float32 on both sides, summed in different orders: of the largest output, or of 1 where that is smaller.
TOLERANCE = 1e-5
IMAGES = 2
_SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 2}
# Title, timm's name, options (none: the model as it is, with timm's weights where they are at hand), the weights' file.
SUBJECTS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("ViT", "vit_tiny_patch16_224", {}, "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"),
    ("DeiT", "deit_tiny_patch16_224", {}, "deit_tiny_patch16_224.fb_in1k.safetensors"),
    ("DeiT distilled", "deit_tiny_distilled_patch16_224", {**_SMALL, "num_classes": 7, "img_size": 64}, ""),
    ("DINOv2", "vit_small_patch14_dinov2", {**_SMALL, "num_classes": 0, "img_size": 56}, ""),
    ("DINOv2, registers", "vit_small_patch14_reg4_dinov2", {**_SMALL, "num_classes": 0, "img_size": 56}, ""),
    ("CLIP", "vit_base_patch32_clip_quickgelu_224", {**_SMALL, "num_classes": 48, "img_size": 96}, ""),
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One form of one model: `exact` (the largest difference in `error`), `refused`, or `fails` with the reason."""

    form: str
    model: str
    outcome: str
    error: float = 0.0
    words: str = ""
    said: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Table:
    """All cells, and what they were made with."""

    timm: str
    torch: str
    images: str
    cells: tuple[Cell, ...]


def subjects(data: Path | None) -> Iterator[Subject]:
    """The models; those with timm's weights only where `data` has them, all others random."""
    for title, name, options, file in SUBJECTS:
        if file and data is None:
            continue
        module = timm.create_model(name, **options).eval()
        if file and data is not None:
            module.load_state_dict(load_file(data / file))
            title += " (timm's weights)"
        else:
            enliven(module)
            title += " (small, random)"
        yield Subject(title=title, name=name, options=options, module=module)


def enliven(module: Any, seed: int = 0) -> None:
    """Random values in every parameter, so large that each changes the output. CLIP's projection has no bias."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            draw = torch.randn(value.shape, generator=generator)
            if value.ndim > 1 and not name.endswith(("_token", "pos_embed")):
                value.copy_(draw / value[0].numel() ** 0.5)
            else:
                value.copy_(0.3 * draw + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
        if isinstance(module.norm_pre, nn.LayerNorm):
            module.head.bias.zero_()


def try_form(title: str, subject: Subject, folder: Path, data: Path | None) -> Cell | None:
    """Make the form, read it, compare; None where the form does not exist for this model."""
    made = FORMS[title](subject, folder)
    if made is None:
        return None
    said: list[str] = []
    cell = partial(Cell, form=title, model=subject.title)
    try:
        program = own_program(made.name, made.path, say=said.append)
    except EdgevitError as refusal:
        words = str(refusal).replace(str(folder), "DIR")
        fits = made.module is None and made.refused in words
        return cell(outcome="refused" if fits else "fails", words=words)
    if made.module is None:
        return cell(outcome="fails", words=f"was read, and should be refused: {made.refused}")
    error = _difference(made, Vit(program), program.spec.image, data)
    lines = tuple(line.replace(str(folder), "DIR") for line in said)
    return cell(outcome="exact" if error <= TOLERANCE else "fails", error=error, said=lines)


def _difference(made: Made, vit: Vit, image: ImageSpec, data: Path | None) -> float:
    """The largest difference of outputs, as a fraction of the largest output (of 1 if that is smaller)."""
    x = normalise(vit.spec, _images(image, data))
    with torch.no_grad():
        assert made.module is not None
        expected, got = made.module(x), vit(x)
    if expected.shape != got.shape:
        return float("inf")
    return float((expected - got).abs().max() / max(1.0, float(expected.abs().max())))


def _images(image: ImageSpec, data: Path | None) -> np.ndarray:
    if data is None:
        return np.random.default_rng(0).integers(0, 256, (IMAGES, image.height, image.width, 3), dtype=np.uint8)
    from edgevit.images.image_set import load_images

    return load_images(data / "imagenet-val-1000.tar", image, limit=IMAGES).images


def make_table(data: Path | None) -> Table:
    """Try every form of every model."""
    cells = []
    for subject in subjects(data):
        for title in FORMS:
            with tempfile.TemporaryDirectory() as folder:
                cell = try_form(title, subject, Path(folder), data)
            cells += [cell] if cell is not None else []
    images = "noise" if data is None else f"{IMAGES} images of imagenet-val-1000.tar"
    return Table(timm=timm.__version__, torch=torch.__version__, images=images, cells=tuple(cells))


def to_markdown(table: Table) -> str:
    """The table for people: one row a form, one column a model, and below it the words."""
    models = list(dict.fromkeys(cell.model for cell in table.cells))
    found = {(cell.form, cell.model): cell for cell in table.cells}
    lines = [
        "# Checkpoint forms",
        "",
        f"Made by `python -m benchmarks.checkpoints` (timm {table.timm}, torch {table.torch}). `exact`: outputs on "
        f"{table.images} differ from the torch module's by at most {TOLERANCE:g} of the largest; the difference is "
        "beside it. `-`: the form does not exist for that model.",
        "",
        "| form | " + " | ".join(models) + " |",
        "| --- |" + " --- |" * len(models),
    ]
    for form in FORMS:
        row = [found.get((form, model)) for model in models]
        lines.append(f"| {form} | " + " | ".join(_entry(cell) for cell in row) + " |")
    lines += ["", "What is said, and with which words the rest is refused (of the first model that has the form):", ""]
    for form in FORMS:
        first = next((found[form, m] for m in models if (form, m) in found), None)
        if first is not None:
            own = [line for line in first.said if not line.startswith(("preprocessing assumed", "the weights name no"))]
            words = "; ".join(own) if first.outcome == "exact" else first.words.replace("\n", " ")
            lines += [f"- {form}: {words}"] if words else []
    return "\n".join(lines) + "\n"


def _entry(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"exact ({cell.error:.0e})" if cell.outcome == "exact" else cell.outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/reference"))
    folder = parser.parse_args().out
    torch.set_num_threads(1)
    data = Path(os.environ["EDGEVIT_DATA"]) if os.environ.get("EDGEVIT_DATA") else None
    table = make_table(data)
    folder.mkdir(parents=True, exist_ok=True)
    strict_json.write_atomic(folder / "checkpoints.json", strict_json.dumps(table))
    strict_json.write_atomic(folder / "checkpoints.md", to_markdown(table))
    print(to_markdown(table))


if __name__ == "__main__":
    main()
