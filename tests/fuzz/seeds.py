"""Inputs to begin with, of every form that a reader knows; made anew each time, so that they follow the formats."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as save_safetensors

from benchmarks.checkpoint_forms import FORMS, Subject
from edgevit.backends.tvm.run.runner import SCHEMA as MODEL_SCHEMA
from edgevit.backends.tvm.run.runner import Manifest, Parameter
from edgevit.bundle.read import open_bundle
from edgevit.bundle.signature import sign
from edgevit.compress.training.recipe import TrainRecipe, to_toml
from edgevit.devices.qemu import packages
from edgevit.devices.qemu.userland import Record
from edgevit.frontends.timm_import import timm
from edgevit.program.program import save_program
from edgevit.schema.manifest import BundleFile
from edgevit.schema.points import OperatingPoint
from edgevit.schema.target import list_targets
from edgevit.util import strict_json
from edgevit.util.resources import shipped
from tests.bundles import sample_bundle
from tests.frontends.real import enliven
from tests.fuzz.targets import IMAGE, TARGET_NAME, digest
from tests.keys import KINDS, write_key
from tests.pictures import class_folders, npz, packed, picture_bytes
from tests.report.sample import manifest, measurement
from tests.tiny import tiny_program

SMALL: Mapping[str, Any] = {"depth": 1, "dim": 8, "heads": 2, "hidden": 8, "classes": 3, "image": (16, 16), "patch": 8}
SIZE = (8, 9)  # of pictures, pixels
OLD = Path(__file__).parents[1] / "bundle"  # bundles of older schemas


def write_seeds(name: str, folder: Path) -> None:
    """Put the seeds of a target into an existing folder."""
    with tempfile.TemporaryDirectory() as temporary:
        for seed in SEEDS[name](Path(temporary)):
            (folder / digest(seed)).write_bytes(seed)


def _state() -> dict[str, torch.Tensor]:
    return {
        "cls_token": torch.ones(1, 1, 4),
        "patch_embed.proj.weight": torch.ones(4, 3, 2, 2, dtype=torch.float16),
        "blocks.0.norm1.weight": torch.ones(4, dtype=torch.bfloat16),
        "head.weight": torch.zeros(3, 4, dtype=torch.float64),
    }


def _safetensors(_: Path) -> Iterator[bytes]:
    yield save_safetensors(_state())
    yield save_safetensors({f"module.{n}": v for n, v in _state().items()}, {"format": "pt"})
    yield save_safetensors({"model.a": torch.ones(2), "model_ema.a": torch.ones(2), "n": torch.tensor(1)})


def _torch(_: Path) -> Iterator[bytes]:
    state = _state()
    contents: tuple[Any, ...] = (
        state,
        {"state_dict": state, "epoch": 1, "args": argparse.Namespace(lr=1.0), "best": np.float64(0.5)},
        {"model": state, "model_ema": OrderedDict(state), "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        [torch.ones(2), {"a": (1, None)}],
    )
    for content in contents:
        for new in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=new)
            yield buffer.getvalue()


def _jax(_: Path) -> Iterator[bytes]:
    block = "Transformer/encoderblock_0/"
    arrays: dict[str, Any] = {
        "cls": np.ones((1, 1, 4), np.float32),
        "embedding/kernel": np.ones((2, 2, 3, 4), np.float16),
        f"{block}LayerNorm_0/scale": np.ones(4),
        f"{block}MlpBlock_3/Dense_0/kernel": np.ones((4, 8), np.float32),
    }
    attention = f"{block}MultiHeadDotProductAttention_1/"
    arrays |= {f"{attention}{part}/kernel": np.ones((4, 2, 2), np.float32) for part in ("query", "key", "value")}
    arrays |= {f"{attention}{part}/bias": np.ones((2, 2), np.float32) for part in ("query", "key", "value")}
    arrays[f"{attention}out/kernel"] = np.ones((2, 2, 4), np.float32)
    for root in ("", "opt/target/"):
        buffer = io.BytesIO()
        np.savez(buffer, **{root + name: array for name, array in arrays.items()})
        yield buffer.getvalue()


def _hub(folder: Path) -> Iterator[bytes]:
    options: dict[str, Any] = {"embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 3, "img_size": 16}
    names = ("vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_base_patch32_clip_quickgelu_224")
    for name in names:
        module = enliven(timm.create_model(name, **options, patch_size=8))
        place = folder / name
        place.mkdir()
        FORMS["transformers' folder"](
            Subject(title="", name=name, options={**options, "patch_size": 8}, module=module), place
        )
        (place / "README.md").write_text("---\nlicense: mit\n---\n")
        yield _zipped_folder(place)
    module = enliven(timm.create_model(names[0], **options, patch_size=8))
    stated = {
        "architecture": names[0],
        "num_classes": 3,
        "model_args": {**options, "patch_size": 8},
        "label_names": ["a", "b", "c"],
        "label_descriptions": {"a": "an a"},
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "interpolation": "bicubic"},
    }
    weights = save_safetensors({n: v.contiguous() for n, v in module.state_dict().items()})
    config = json.dumps(stated).encode()
    yield _zipped({"config.json": config, "model.safetensors": weights})
    shards: dict[str, dict[str, torch.Tensor]] = {"one.safetensors": {}, "two.safetensors": {}}
    for index, (name, value) in enumerate(module.state_dict().items()):
        shards[("one.safetensors", "two.safetensors")[index % 2]][name] = value.contiguous()
    table = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    files = {file: save_safetensors(part) for file, part in shards.items()}
    yield _zipped({"config.json": config, "model.safetensors.index.json": json.dumps(table).encode(), **files})


def _program(folder: Path) -> Iterator[bytes]:
    forms: tuple[dict[str, Any], ...] = ({}, {"skip": True, "labels": ("a", "b", "c")})
    for number, options in enumerate(forms):
        place = folder / str(number)
        save_program(tiny_program(gated=True, **SMALL, **options), place, storage="float16" if number else "float32")
        yield _zipped_folder(place)


def sample(folder: Path) -> Path:
    """A bundle whose manifest is not sealed: what is changed in it is read on."""
    point = OperatingPoint(effort=0.0, name="balanced", macs=2e5, worst_macs=300_000, branches=2.0, images=4)
    fast = dataclasses.replace(point, effort=-1.0, name="fast")
    points = (fast, point, dataclasses.replace(point, effort=0.5, name=None))
    changes = {"points": points}
    place = sample_bundle(folder / "bundle", labels=("a", "b", "c"), changes=changes, **SMALL)
    stated = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(strict_json.dumps({**stated, "sha256": ""}))
    return place


def signed_bundle(folder: Path) -> None:
    """Put `bundle`, its signature `bundle.sig`, and the key `my.pub` into a folder; the same key each time."""
    place = sample_bundle(folder / "bundle", **SMALL)
    write_key(folder / "my.key", seed=1)
    with open_bundle(place) as bundle:
        (folder / "bundle.sig").write_bytes(sign(bundle, folder / "my.key"))


def _manifest(folder: Path) -> Iterator[bytes]:
    """Of today's schema, and of those before it."""
    yield (sample(folder) / "manifest.json").read_bytes()
    for name in ("schema1", "schema2"):
        with zipfile.ZipFile(OLD / name / "tiny.zip") as archive:
            (found,) = [each for each in archive.namelist() if each.endswith("manifest.json")]
            yield strict_json.dumps({**json.loads(archive.read(found)), "sha256": ""}).encode()


def _bundle(folder: Path) -> Iterator[bytes]:
    """With little in the place of its model, which reading does not look into."""
    place = sample(folder)
    stated = json.loads((place / "manifest.json").read_text())
    kept = [f for f in stated["files"] if not f["path"].startswith(("model/", "runner/"))]
    stated |= {"model": "labels.json", "models": {}, "files": kept}
    members = {name: (place / name).read_bytes() for name in sorted(f["path"] for f in kept)}
    every = {"manifest.json": strict_json.dumps(stated).encode(), **members}
    yield _zipped(every)
    yield _zipped({f"tiny/{name}": raw for name, raw in every.items()})


def _target(_: Path) -> Iterator[bytes]:
    for name in list_targets()[::3]:
        text = (shipped("targets") / f"{name}.toml").read_text()
        text = text.replace(f'name = "{name}"', f'name = "{TARGET_NAME}"')
        yield text.encode()
    budgets = "ram_mb = 8.0\nflash_mb = 6\nlatency_ms = 30.5\ndrop_points = 0\n"
    yield text.replace("[reasons]", f"{budgets}[reasons]").encode()


def _recipe(_: Path) -> Iterator[bytes]:
    yield to_toml(TrainRecipe()).encode()
    yield b'groups = "random 2 8"\n'


def _list(_: Path) -> Iterator[bytes]:
    head = b'name = "n"\ndescription = "d"\nlicence = "CC0-1.0"\n'
    digests = hashlib.sha256(picture_bytes(size=SIZE)).hexdigest().encode()
    entry = b'\n[[image]]\nfile = "%s"\nsha256 = "%s"\nsource = "s"\nlicence = "CC0-1.0"\n'
    one = entry % (IMAGE.encode(), digests)
    yield head + one
    yield head + one + b"label = 1\n" + one + b"label = 0\n"


def _image(_: Path) -> Iterator[bytes]:
    yield from (picture_bytes(size=SIZE, kind=kind) for kind in ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF"))
    pixels = Image.fromarray(np.arange(72, dtype=np.uint8).reshape(SIZE))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    forms: tuple[tuple[Image.Image, str, dict[str, Any]], ...] = (
        (pixels.convert("RGB"), "JPEG", {"exif": exif, "progressive": True}),
        (pixels.convert("CMYK"), "JPEG", {}),
        (pixels.convert("LA"), "PNG", {}),
        (pixels.convert("P"), "PNG", {"transparency": 3}),
        (pixels.convert("1"), "TIFF", {"compression": "group4"}),
        (pixels.convert("RGB"), "TIFF", {"compression": "tiff_lzw"}),
        (Image.fromarray(np.arange(72, dtype=np.uint16).reshape(SIZE)), "PNG", {}),
        (Image.fromarray(np.arange(72, dtype=np.uint16).reshape(SIZE)), "TIFF", {}),
        (pixels.convert("RGBA"), "WEBP", {"save_all": True, "append_images": [pixels.convert("RGBA")]}),
    )
    for image, kind, options in forms:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        yield buffer.getvalue()


def _archive(kind: str) -> Callable[[Path], Iterator[bytes]]:
    def make(folder: Path) -> Iterator[bytes]:
        root = folder / "train"
        class_folders(root, ("cat", "dog"), each=1)
        yield packed(root, kind).read_bytes()
        (root / "labels.csv").write_text("file,label,name,split\ncat/0.png,0,cat,train\ndog/0.png,1,dog,val\n")
        raw = packed(root, kind).read_bytes()
        yield raw + bytes(len(raw) % 2)

    return make


def _npz(folder: Path) -> Iterator[bytes]:
    pictures = [picture_bytes(seed, SIZE, "JPEG") for seed in range(3)]
    yield npz(folder / "a.npz", pictures).read_bytes()
    yield npz(folder / "b.npz", pictures, label=None, classes=None).read_bytes()


def _measurement(_: Path) -> Iterator[bytes]:
    yield strict_json.dumps(measurement()).encode()


def _report(_: Path) -> Iterator[bytes]:
    made = manifest()
    names = sorted({made.model, *made.models.values()})
    files = tuple(BundleFile(path=name, bytes=0, sha256=hashlib.sha256().hexdigest()) for name in names)
    described = strict_json.dumps(dataclasses.replace(made, files=files)).encode()
    bundle = _zipped({"manifest.json": described, **dict.fromkeys(names, b"")})
    yield _zipped({"bundle.zip": bundle, "measurement.json": strict_json.dumps(measurement()).encode()})


def _device(_: Path) -> Iterator[bytes]:
    record = Record(
        made_from=packages.digest(),
        python="3.11",
        emulator="host/qemu",
        emulator_version="qemu 7.2",
        libraries=None,
        plugin="count.so",
        uncounted="",
        accountant=None,
        unaccounted="none",
        runtimes=("onnxruntime",),
        cpus=("cortex-a72",),
        packages={"a": "1"},
        sha256={"a": "0" * 64},
    )
    yield strict_json.dumps(record).encode()


def _model_json(_: Path) -> Iterator[bytes]:
    one = Manifest(
        schema=MODEL_SCHEMA,
        tvm="0.27.0",
        isa="avx2",
        machines=("x86_64",),
        flags=("avx2", "fma"),
        height=32,
        width=32,
        classes=10,
        branches=4,
        arena=4096,
        memory=20480,
        weights=(Parameter(name="a", offset_bytes=0, elements=16), Parameter(name="b", offset_bytes=64, elements=3)),
        files=(BundleFile(path="model.so", bytes=9, sha256="0" * 64),),
    )
    yield strict_json.seal(one).encode()
    yield strict_json.seal(dataclasses.replace(one, weights=(), files=(), threads=4, points=2)).encode()


def _signature(folder: Path) -> Iterator[bytes]:
    signed_bundle(folder)
    yield (folder / "bundle.sig").read_bytes()
    for kind in KINDS:
        yield write_key(folder / "other.key", kind).read_bytes()
    yield (folder / "other.key").read_bytes()


def _options(_: Path) -> Iterator[bytes]:
    yield from (b"limit latency>+5%", b"limit size <= 8.5MB", b"limit top1<-1pt", b"limit parameters>10k")
    yield from (b"tokens 1:4,2:4", b"tokens 2:0-20@0.8,3:4-8@-1e-2", b"budget ram=8,flash=6,latency=30.5,drop=0")
    yield from (b"effort 0.5", b"effort -inf", b"effort fast")


def _runner_inputs(_: Path) -> Iterator[bytes]:
    """The first byte says what the rest is: see runner_inputs.cc."""
    yield b"pP6\n# a comment\n4 4\n255\n" + bytes(48)
    yield b"r" + bytes(48)
    yield b"l0 0\n1 -inf\n 0\t1e-3"
    words = ("folder", "-", "--top", "3", "--trace", "--threads", "2", "--cpus", "0,1")
    yield b"o" + "\0".join(words).encode()
    yield b"o" + "\0".join(("folder", "a.ppm", "--effort", "-inf", "--runs", "2")).encode()
    yield b"o" + "\0".join(("folder", "images", "--plan", "file", "--help")).encode()


def _native_pictures(folder: Path) -> Iterator[bytes]:
    """The forms that the C++ runner decodes, behind a byte that says how each becomes an input."""
    forms = (raw for raw in _image(folder) if raw.startswith((b"\xff\xd8", b"\x89PNG", b"P6")))
    yield from (bytes([7 * place % 72]) + raw for place, raw in enumerate(forms))


def _zipped_folder(folder: Path) -> bytes:
    return _zipped({path.name: path.read_bytes() for path in sorted(folder.iterdir())})


def _zipped(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, raw in members.items():
            archive.writestr(zipfile.ZipInfo(name), raw)
    return buffer.getvalue()


SEEDS: Mapping[str, Callable[[Path], Iterator[bytes]]] = {
    "weights-safetensors": _safetensors,
    "weights-torch": _torch,
    "weights-jax": _jax,
    "weights-hub-folder": _hub,
    "program": _program,
    "manifest": _manifest,
    "bundle-zip": _bundle,
    "target": _target,
    "recipe": _recipe,
    "image": _image,
    "image-list": _list,
    "images-tar": _archive("tar"),
    "images-zip": _archive("zip"),
    "images-npz": _npz,
    "measurement": _measurement,
    "report": _report,
    "device-file": _device,
    "model-json": _model_json,
    "signature": _signature,
    "options": _options,
    "run-py": lambda folder: iter([(sample(folder) / "manifest.json").read_bytes()]),
    "model-json-native": _model_json,
    "runner-native": _runner_inputs,
    "pictures-native": _native_pictures,
}
