"""Images arrive as timm would see them; whatever cannot be used is named, and archives cannot reach outside."""

from __future__ import annotations

import io
import tarfile
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgevit.errors import ImagesError
from edgevit.images import image_set, sources
from edgevit.images.image_set import TESTED, load_images, number_labels, prepare
from edgevit.program.spec import ImageSpec
from edgevit.util.limits import Limit
from edgevit.util.resources import shipped
from tests.pictures import class_folders
from tests.tiny import tiny_spec

SPEC = ImageSpec(
    height=32,
    width=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    crop_pct=0.9,
    interpolation="bicubic",
)


def picture(seed: int = 0, size: tuple[int, int] = (40, 50), kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def fill(folder: Path, count: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        (folder / f"{index}.png").write_bytes(picture(index))
    return folder


def test_folder_tar_zip_and_limit_agree(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set")
    with tarfile.open(tmp_path / "set.tar", "w") as tar, zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
            archive.write(path, path.name)
    sets = [load_images(tmp_path / name, SPEC) for name in ("set", "set.tar", "set.zip")]
    assert len({s.digest for s in sets}) == 1
    assert sets[0].images.shape == (4, 32, 32, 3)
    assert load_images(folder, SPEC, limit=2).names == ("0.png", "2.png")


def test_labels_from_a_table_or_from_folders(tmp_path: Path) -> None:
    folder = fill(tmp_path / "flat")
    (folder / "labels.csv").write_text("file,label\n" + "\n".join(f"{i}.png,{3 - i}" for i in range(4)))
    labels = load_images(folder, SPEC, labelled=True).labels
    assert labels is not None
    assert labels.tolist() == [3, 2, 1, 0]
    for name in ("cat", "dog"):
        fill(tmp_path / "classes" / name, 2)
    labels = load_images(tmp_path / "classes", SPEC, labelled=True).labels
    assert labels is not None
    assert labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("place", ["", "set/"])
def test_rows_of_a_table_name_files_beside_it(place: str) -> None:
    """Whatever way a path is written; empty lines say nothing, and what a short row leaves out is empty."""
    table = b"file,label,name,split\na.png,1,cat,valid\n\n./b.png,2\nx//y.png,3,,\nx/./z.png,4\n"
    facts = sources._csv_facts(Path("photos"), f"{place}labels.csv", lambda: table)
    told = {name: (known.label, known.class_name, known.split) for name, known in facts.items()}
    assert told == {
        f"{place}a.png": (1, "cat", "val"),
        f"{place}b.png": (2, "", ""),
        f"{place}x/y.png": (3, "", ""),
        f"{place}x/z.png": (4, "", ""),
    }
    with pytest.raises(ImagesError, match=r"labels.csv line 2: got label '', allowed: a whole number"):
        sources._csv_facts(Path("photos"), "labels.csv", lambda: b"file,label\na.png\n")


def test_a_table_of_too_many_lines_is_refused_before_it_is_read() -> None:
    with pytest.raises(ImagesError, match="it has 1000001 lines, allowed: 1000000 lines"):
        sources._csv_facts(Path("photos"), "labels.csv", lambda: b"a\n" * 1_000_001)


def test_missing_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match=r"no label for 4 of 4.*0\.png"):
        load_images(fill(tmp_path / "set"), SPEC, labelled=True)


def test_unreadable_images_are_counted_and_too_many_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", 11)
    (folder / "3.png").write_bytes(b"no image")
    loaded = load_images(folder, SPEC)
    assert len(loaded.images) == 10
    assert loaded.unreadable[0].startswith("3.png")
    (folder / "4.png").write_bytes(picture(4)[:200])
    with pytest.raises(ImagesError, match=r"2 of 11 .*\n.*3\.png.*\n.*4\.png"):
        load_images(folder, SPEC)


def test_a_set_is_the_same_however_many_threads_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a process warns of is again what it was."""
    folder, sets, before = fill(tmp_path / "set", 21), [], list(warnings.filters)
    (folder / "20.png").write_bytes(b"no image")
    (folder / "3.png").write_bytes(picture(4)[:200])
    for threads in (1, 2):
        monkeypatch.setattr(image_set, "threads_here", lambda count=threads: count)
        sets.append(load_images(folder, SPEC))
        assert list(warnings.filters) == before
    for loaded in sets:
        assert loaded.digest == sets[0].digest and loaded.names == sets[0].names and len(loaded) == 19
        assert [line.partition(":")[0] for line in loaded.unreadable] == ["20.png", "3.png"]


def test_a_strip_that_would_be_resized_to_gigabytes_counts_as_unreadable(tmp_path: Path) -> None:
    (tmp_path / "strip.png").write_bytes(picture(0, (1, 5000)))
    with pytest.raises(ImagesError, match="5000 x 1 pixels"):
        load_images(tmp_path, replace(SPEC, height=224, width=224))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (lambda folder: folder / "none", "no such file"),
        (lambda folder: folder, "it is empty"),
        (lambda folder: (folder / "notes.txt").write_text("x") and folder, "other kinds"),
        (lambda folder: (folder / "notes.txt").write_text("x") and folder / "notes.txt", "not a source of images"),
        (lambda folder: (folder / "bad.tar").write_bytes(b"x" * 600) and folder / "bad.tar", "tar"),
        (lambda folder: (folder / "bad.zip").write_bytes(b"x" * 600) and folder / "bad.zip", "zip"),
    ],
)
def test_what_is_no_source_of_images_is_refused(tmp_path: Path, place, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ImagesError, match=said):
        load_images(place(tmp_path), SPEC)


def test_members_that_leave_an_archive_are_refused(tmp_path: Path) -> None:
    raw = picture()
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../out.png", raw)
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        member = tarfile.TarInfo("in.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    for name in ("evil.zip", "evil.tar"):
        with pytest.raises(ImagesError, match="refused"):
            load_images(tmp_path / name, SPEC)


def test_a_member_too_large_for_a_photograph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "IMAGE_BYTES", Limit(of="an image", value=100, unit="bytes"))
    with zipfile.ZipFile(tmp_path / "big.zip", "w") as archive:
        archive.writestr("in.png", picture())
    with pytest.raises(ImagesError, match="allowed: 100"):
        load_images(tmp_path / "big.zip", SPEC)


def test_a_link_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    folder = fill(tmp_path / "set")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ImagesError, match="outside"):
        load_images(folder, SPEC)


def test_the_shipped_set_is_intact_and_lists_its_licences() -> None:
    loaded = load_images(shipped("calibration") / "shipped.toml", SPEC)
    assert len(loaded.images) >= 24
    assert not loaded.unreadable


def test_a_changed_file_of_a_manifest_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    text = '[[image]]\nfile = "{}"\nsha256 = "0"\nsource = "me"\nlicence = "CC0-1.0"\n'
    head = 'name = "mine"\ndescription = "one image"\nlicence = "CC0-1.0"\n'
    (tmp_path / "set.toml").write_text(head + text.format("0.png") + text.format("../up.png"))
    with pytest.raises(ImagesError, match=r"2 faults(.|\n)*changed(.|\n)*outside"):
        load_images(tmp_path / "set.toml", SPEC)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 300), st.integers(1, 300), st.booleans())
def test_any_size_becomes_the_input_shape(tmp_path: Path, width: int, height: int, square: bool) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(picture(1, (height, width)))
    spec = SPEC if square else replace(SPEC, height=24, width=40)
    assert load_images(path, spec).images.shape == (1, spec.height, spec.width, 3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.sampled_from(["a.png", "a.jpg", "a.tar", "a.zip", "a.toml", "labels.csv"]))
def test_any_bytes_are_one_error(tmp_path: Path, raw: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ImagesError):
        load_images(tmp_path / name, SPEC)


@pytest.mark.parametrize(("height", "width", "crop"), [(224, 224, 0.9), (224, 224, 1.0), (192, 256, 0.9)])
def test_preprocessing_is_timms(height: int, width: int, crop: float) -> None:
    import torch

    from edgevit.frontends.timm_import import timm

    size = (3, height, width)
    config = {"input_size": size, "mean": (0, 0, 0), "std": (1, 1, 1), "crop_pct": crop, "interpolation": "bicubic"}
    transform = timm.data.create_transform(**config)
    shapes = [(300, 451), (427, 640), (256, 256), (248, 331), (231, 230), (200, 333), (401, 300)]
    for seed, shape in enumerate(shapes):
        with Image.open(io.BytesIO(picture(seed, shape))) as file:
            got = prepare(file, replace(SPEC, height=height, width=width, crop_pct=crop))
            assert torch.equal(torch.from_numpy(got.copy()).permute(2, 0, 1) / 255, transform(file))


def test_real_images_are_prepared_as_timm_does(data: Path) -> None:
    import torch

    from edgevit.frontends.timm_import import timm

    config = {"input_size": (3, 224, 224), "mean": (0, 0, 0), "std": (1, 1, 1), "crop_pct": 0.9}
    transform = timm.data.create_transform(**config, interpolation="bicubic")
    loaded = load_images(data / "imagenet-val-1000.tar", replace(SPEC, height=224, width=224), limit=8)
    with tarfile.open(data / "imagenet-val-1000.tar") as archive:
        for name, image in zip(loaded.names, loaded.images, strict=True):
            file = archive.extractfile(name)
            assert file is not None
            expected = transform(Image.open(file).convert("RGB"))
            assert torch.equal(torch.from_numpy(image.copy()).permute(2, 0, 1) / 255, expected)


def test_the_reference_set_loads_whole(data: Path) -> None:
    loaded = load_images(data / "imagenet-val-1000.tar", replace(SPEC, height=224, width=224), labelled=True)
    assert loaded.images.shape == (1000, 224, 224, 3)
    assert loaded.labels is not None
    assert 0 <= loaded.labels.min() <= loaded.labels.max() < 1000


def splits_folder(folder: Path) -> Path:
    """Two numbered classes, three pictures each to train on and two to validate."""
    class_folders(folder / "train", ("7", "40"), 3)
    class_folders(folder / "val", ("7", "40"), 2)
    return folder


def test_the_first_split_that_a_source_has_is_taken(tmp_path: Path) -> None:
    folder = splits_folder(tmp_path / "set")
    assert len(load_images(folder, SPEC)) == 10
    assert len(load_images(folder, SPEC, splits=TESTED)) == 4
    assert len(load_images(folder, SPEC, splits=("train",))) == 6
    assert len(load_images(folder, SPEC, splits=("holdout",))) == 10


def test_labels_become_the_models_class_numbers(tmp_path: Path) -> None:
    """A model with a new head for classes 7 and 40 of a larger set is judged on images labelled 7 and 40."""
    loaded = load_images(splits_folder(tmp_path / "set"), SPEC, labelled=True, splits=TESTED)
    assert loaded.labels is not None and loaded.labels.tolist() == [40, 40, 7, 7]
    spec = tiny_spec(classes=2)
    known = replace(spec, origin={"class_numbers": "7 40"})
    numbered = number_labels(loaded, known)
    assert numbered.labels is not None and numbered.labels.tolist() == [1, 1, 0, 0]
    with pytest.raises(ImagesError, match=r"numbers 7, 40, but tiny has 2 classes \(0 to 1\)"):
        number_labels(loaded, spec)
    with pytest.raises(ImagesError, match="no labels"):
        number_labels(load_images(tmp_path / "set", SPEC), known)
