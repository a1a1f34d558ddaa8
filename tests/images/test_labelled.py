"""Labelled sets: the same images whatever they come in, labels that fit, and splits that never mix."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgevit.errors import ImagesError
from edgevit.images import sources
from edgevit.images.image_set import UnreadableImage, load_images, prepare
from edgevit.images.labelled import (
    LabelledSet,
    check_labels,
    compact_labels,
    hold_out,
    open_labelled,
    prepare_all,
    subset,
)
from tests.pictures import SPEC, class_folders, npz, packed, picture_bytes


def labels_of(data: LabelledSet) -> list[int]:
    assert data.labels is not None
    return [int(label) for label in data.labels]


def all_pixels(data: LabelledSet) -> bytes:
    return b"".join(data.picture(i).tobytes() for i in range(len(data)))


def table(folder: Path, header: str, *rows: str) -> Path:
    (folder / "labels.csv").write_text("\n".join((header, *rows)))
    return folder


def refused(data: LabelledSet, classes: int) -> str:
    with pytest.raises(ImagesError) as error:
        check_labels(data, classes)
    return str(error.value)


def test_folder_tar_zip_and_npz_hold_the_same_images(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set")
    sets = [open_labelled(path) for path in (folder, packed(folder, "tar"), packed(folder, "zip"))]
    sets.append(open_labelled(npz(tmp_path / "set.npz", [picture_bytes(i) for i in range(12)])))
    assert len({all_pixels(data) for data in sets}) == 1
    assert [labels_of(data) for data in sets[:3]] == [[0] * 4 + [1] * 4 + [2] * 4] * 3
    assert labels_of(sets[3]) == [0, 1, 2] * 4
    assert {data.classes for data in sets} == {("cat", "dog", "eel")}


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "npz"])
def test_a_set_can_be_pickled_and_read_by_another_process(tmp_path: Path, kind: str) -> None:
    folder = class_folders(tmp_path / "set")
    if kind == "npz":
        path = npz(tmp_path / "set.npz", [picture_bytes(i) for i in range(12)])
    else:
        path = folder if kind == "folder" else packed(folder, kind)
    data = open_labelled(path)
    before = all_pixels(data)
    assert all_pixels(pickle.loads(pickle.dumps(data))) == before
    with multiprocessing.get_context("fork").Pool(2) as pool:  # at once, on handles opened before the fork
        assert pool.map(all_pixels, [data] * 4) == [before] * 4
    assert all_pixels(data) == before


def test_a_forked_process_does_not_move_this_ones_place_in_a_zip(tmp_path: Path) -> None:
    path = packed(class_folders(tmp_path / "set"), "zip")
    data = open_labelled(path)
    data.picture(0)
    file = sources._opened_zip(path, os.getpid(), path.stat().st_mtime_ns).fp
    assert file is not None
    place = os.lseek(file.fileno(), 0, os.SEEK_CUR)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.map(data.picture, [11])
    assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == place


def test_the_digest_changes_with_names_and_labels(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set")
    first = open_labelled(folder)
    assert open_labelled(folder).digest == first.digest
    assert subset(first, range(12)).digest != first.digest
    (folder / "cat" / "0.png").rename(folder / "dog" / "9.png")
    assert open_labelled(folder).digest != first.digest
    raws = [picture_bytes(i) for i in range(3)]
    digests = [open_labelled(npz(tmp_path / "set.npz", r)).digest for r in (raws, [raws[1] + b"0", *raws[1:]])]
    assert digests[0] != digests[1]


def test_a_table_gives_labels_names_and_splits(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set", ("x",), 6)
    rows = (f"x/{i}.png,{'train' if i < 4 else 'Validation'},{7 - i},{'abcdefgh'[7 - i]}" for i in range(6))
    table(folder, "file,split,imagenet_label,name", *rows)
    whole = open_labelled(packed(folder, "tar"))
    assert whole.splits == ("train", "val")
    assert labels_of(whole) == [7, 6, 5, 4, 3, 2]
    assert whole.classes == ("", "", "c", "d", "e", "f", "g", "h")
    assert labels_of(open_labelled(folder, split="train")) == [7, 6, 5, 4]
    held = open_labelled(folder, split="valid")
    assert labels_of(held) == [3, 2]
    assert held.names == ("x/4.png", "x/5.png")
    assert held.picture(1).tobytes() == whole.picture(5).tobytes()
    with pytest.raises(ImagesError, match="no split 'test'; it has: train, val"):
        open_labelled(folder, split="test")


@pytest.mark.parametrize("wrapped", [False, True])
def test_folders_train_and_val_are_splits_and_no_classes(tmp_path: Path, wrapped: bool) -> None:
    root = tmp_path / "set" / "inner" if wrapped else tmp_path / "set"
    class_folders(root / "train")
    class_folders(root / "val", ("cat", "eel"), 2)
    train, held = (open_labelled(tmp_path / "set", split=s) for s in ("train", "val"))
    assert labels_of(train) == [0] * 4 + [1] * 4 + [2] * 4
    assert labels_of(held) == [0, 0, 2, 2]  # numbered over both
    assert train.classes == held.classes == ("cat", "dog", "eel")
    assert len(open_labelled(tmp_path / "set")) == 16


def test_a_split_without_class_folders_has_no_labels(tmp_path: Path) -> None:
    class_folders(tmp_path / "set", ("train", "val"))
    data = open_labelled(tmp_path / "set", split="val")
    assert data.labels is None
    assert len(data) == 4
    check_labels(data, 1000)


def test_classes_that_are_called_train_are_classes(tmp_path: Path) -> None:
    data = open_labelled(class_folders(tmp_path / "set", ("bus", "train")))
    assert data.classes == ("bus", "train")
    assert not data.splits


def test_a_source_without_splits_is_one_training_split(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set")
    file = npz(tmp_path / "set.npz", [picture_bytes()] * 3)
    for source, size in ((folder, 12), (file, 3)):
        assert len(open_labelled(source, split="train")) == size
        with pytest.raises(ImagesError, match="knows no splits.*hold out"):
            open_labelled(source, split="val")


def test_images_missing_from_the_table_are_unlabelled(tmp_path: Path) -> None:
    folder = table(class_folders(tmp_path / "set", ("x",), 3), "file,label", "x/1.png,0")
    data = open_labelled(folder)
    assert labels_of(data) == [-1, 0, -1]
    check_labels(data, 1)


@pytest.mark.parametrize("value", ["-1", "1.5", "", "²", "9" * 30, "1000001"])
def test_a_label_that_is_no_class_number_is_refused(tmp_path: Path, value: str) -> None:
    folder = table(class_folders(tmp_path / "set", ("x",), 1), "file,label", f"x/0.png,{value}")
    with pytest.raises(ImagesError, match="line 2: got label"):
        open_labelled(folder)


def test_a_damaged_table_in_an_archive_is_one_error(tmp_path: Path) -> None:
    folder = table(class_folders(tmp_path / "set"), "file,label", "cat/0.png,0")
    path = packed(folder, "zip")
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("set/labels.csv").header_offset
    raw = bytearray(path.read_bytes())
    raw[start + 44 : start + 60] = b"\xff" * 16
    path.write_bytes(raw)
    with pytest.raises(ImagesError, match="cannot be read as a table"):
        open_labelled(path)


def test_a_file_cut_short_or_gone_is_an_unreadable_image(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set")
    tar, data = open_labelled(packed(folder, "tar")), open_labelled(folder)
    (tmp_path / "set.tar").write_bytes((tmp_path / "set.tar").read_bytes()[:2000])
    (folder / "cat" / "0.png").unlink()
    for broken, index in ((tar, 11), (data, 0)):
        with pytest.raises(UnreadableImage):
            broken.picture(index)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"offset": np.array([0, 5, 3, 9])}, "offset: must rise"),
        ({"offset": np.array([0, 5, 9, 10**9])}, "offset: must rise"),
        ({"offset": np.array([-1, 5, 9, 10])}, "offset: must rise"),
        ({"offset": np.array([0.0, 1.0])}, "offset: got float64"),
        ({"offset": np.array([0])}, "offset: got int64"),
        ({"offset": None}, "has the keys jpeg, label, classes"),
        ({"jpeg": np.zeros((4, 4), np.uint8)}, r"jpeg.npy is of uint8 \[4, 4\], allowed: .* one dimension"),
        ({"label": np.array([0, 1])}, r"label: got int64 \[2\], allowed: whole numbers \[3\]"),
        ({"label": np.array([0, 1, -1])}, "label: got -1"),
        ({"label": np.array([0, 1, 2**40])}, "label: got 0 to 1099511627776"),
        ({"label": np.array([0.5, 1, 2])}, "label: got float64"),
        ({"classes": np.array([1, 2])}, "classes: got int64"),
        ({"classes": np.array([{}], dtype=object)}, "cannot be read as an .npz of plain arrays"),
    ],
)
def test_an_npz_that_does_not_fit_together_is_refused(
    tmp_path: Path, changed: dict[str, np.ndarray | None], said: str
) -> None:
    with pytest.raises(ImagesError, match=said):
        open_labelled(npz(tmp_path / "set.npz", [picture_bytes()] * 3, **changed))


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(trap))
    npz(tmp_path / "object.npz", [picture_bytes()] * 3, label=np.array([trap] * 3, dtype=object))
    for name in ("pickle.npz", "object.npz"):
        with pytest.raises(ImagesError, match="cannot be read as an .npz of plain arrays"):
            open_labelled(tmp_path / name)
    assert not trap.path.exists()
    pickle.loads(pickle.dumps(trap))
    assert trap.path.exists(), "the trap works"


def test_an_npz_may_have_no_labels_and_one_array_is_no_set(tmp_path: Path) -> None:
    assert open_labelled(npz(tmp_path / "set.npz", [picture_bytes()] * 3, label=None)).labels is None
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(ImagesError, match="no .npz"):
        open_labelled(tmp_path / "one.npz")


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=300),
    st.floats(0, 1, exclude_max=True, allow_nan=False),
    st.integers(-(2**40), 2**70),
)
def test_holding_out_takes_its_share_of_every_class(values: list[int], fraction: float, seed: int) -> None:
    labels = np.array(values, dtype=np.int64)
    train, held = hold_out(labels, fraction, seed)
    assert sorted([*train, *held]) == list(range(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held) > 0).all()
    assert len(held) <= round(fraction * len(labels))
    for name in set(values):
        total, part = (labels == name).sum(), (labels[held] == name).sum()
        assert abs(part - fraction * total) <= 1
        assert (labels[train] == name).any()
    again = hold_out(labels.copy(), fraction, seed)
    assert np.array_equal(again[0], train)
    assert np.array_equal(again[1], held)


@given(st.integers(2, 12), st.integers(2, 40), st.integers(0, 2**32))
def test_holding_out_gives_exactly_the_number_asked_for(classes: int, each: int, seed: int) -> None:
    labels = np.repeat(np.arange(classes), each)
    _, held = hold_out(labels, 0.1, seed)
    assert len(held) == round(0.1 * len(labels))


def test_holding_out_depends_on_the_seed_and_checks_the_fraction() -> None:
    labels = np.arange(200) % 4
    assert not np.array_equal(hold_out(labels, 0.2, 1)[1], hold_out(labels, 0.2, 2)[1])
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(ImagesError, match="fraction to hold out"):
            hold_out(labels, fraction, 0)


def test_labels_are_checked_against_the_model(tmp_path: Path) -> None:
    data = open_labelled(class_folders(tmp_path / "set"))
    check_labels(data, 3)
    assert "labels out of range: got 2 (first: eel/0.png); allowed: 0 to 1" in refused(data, 2)
    assert "too small a data set for the classes: got 12 labelled images" in refused(data, 13)
    assert "no image of 2 of 5 classes: 3, 4." in refused(data, 5)
    assert "no image of 1 of 3 classes: 1 (dog)." in refused(subset(data, [0, 1, 2, 3, 8, 9, 10, 11]), 3)
    assert data.labels is not None
    negative = replace(data, labels=data.labels - 2)
    assert "got -2" in refused(negative, 3)


def test_labels_can_be_numbered_without_gaps(tmp_path: Path) -> None:
    folder = table(class_folders(tmp_path / "set", ("x",), 4), "file,label,name", *("x/0.png,7,g", "x/1.png,3,c"))
    (folder / "labels.csv").write_text((folder / "labels.csv").read_text() + "\nx/3.png,7,g")
    data = open_labelled(folder)
    compact, originals = compact_labels(data)
    assert originals == (3, 7)
    assert labels_of(compact) == [1, 0, -1, 1]
    assert compact.classes == ("c", "g")
    assert compact.digest != data.digest
    part, _ = compact_labels(subset(data, [0, 3]), originals)
    assert labels_of(part) == [1, 1]
    turned, _ = compact_labels(data, (7, 3))
    assert labels_of(turned) == [0, 1, -1, 0]
    with pytest.raises(ImagesError, match="no classes of the model: got 3; allowed: 7, 9"):
        compact_labels(data, (7, 9))


def test_a_subset_of_a_subset_and_an_index_outside(tmp_path: Path) -> None:
    data = open_labelled(class_folders(tmp_path / "set"))
    part = subset(subset(data, [8, 2, 5]), [2, 0])
    assert part.names == ("dog/1.png", "eel/0.png")
    assert labels_of(part) == [1, 2]
    assert part.picture(1).tobytes() == data.picture(8).tobytes()
    for index in (-1, 12):
        with pytest.raises(ImagesError, match="outside 0 to 11"):
            subset(data, [index])


def test_preparing_all_is_loading_as_an_image_set(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set")
    (folder / "dog" / "2.png").write_bytes(b"no image")
    pixels, labels = prepare_all(open_labelled(folder), SPEC)
    expected = load_images(folder, SPEC, labelled=True)
    assert np.array_equal(pixels, expected.images)
    assert expected.labels is not None
    assert labels.tolist() == expected.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 4
    some, chosen = prepare_all(open_labelled(folder), SPEC, 3)
    assert np.array_equal(some[0], prepare(open_labelled(folder).picture(0), SPEC))
    assert chosen.tolist() == [0, 1, 2]
    (folder / "dog" / "3.png").write_bytes(b"no image")
    with pytest.raises(ImagesError, match="2 of 12"):
        prepare_all(open_labelled(folder), SPEC)


def test_the_real_sets_open(data: Path) -> None:
    cifar = open_labelled(data / "cifar10-train.npz")
    check_labels(cifar, 10)
    assert len(cifar) == 50000
    assert cifar.classes[3] == "cat"
    assert {cifar.picture(i).size for i in (0, 25000, 49999)} == {(32, 32)}
    train, held = (open_labelled(data / "imagenette-3000.tar", split=s) for s in ("train", "val"))
    assert (len(train), len(held)) == (2500, 500)
    assert "no image of 990 of 1000 classes" in refused(train, 1000)
    compact, originals = compact_labels(train)
    check_labels(compact, 10)
    assert compact.classes[:2] == ("tench", "English springer")
    assert np.bincount(compact_labels(held, originals)[0].labels).tolist() == [50] * 10  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1400), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_a_damaged_npz_opens_or_is_one_error(tmp_path: Path, damage: list[tuple[int, int]], cut: bool) -> None:
    path = npz(tmp_path / "set.npz", [b"abc", b"de", b"f"])
    raw = bytearray(path.read_bytes())
    for place, value in damage:
        raw[place % len(raw)] = value
    path.write_bytes(raw[: damage[0][0]] if cut else raw)
    with contextlib.suppress(ImagesError):
        data = open_labelled(path)
        for index in range(len(data)):
            with pytest.raises(UnreadableImage):
                data.picture(index)


def test_an_npz_calibrates_and_evaluates_like_any_source(tmp_path: Path) -> None:
    """What a model was trained with can be given to `edgevit build` as it is."""
    raws = [picture_bytes(i) for i in range(6)]
    loaded = load_images(npz(tmp_path / "set.npz", raws), SPEC, limit=3, labelled=True)
    assert loaded.labels is not None and len(loaded) == 3
    data = open_labelled(tmp_path / "set.npz")
    np.testing.assert_array_equal(loaded.images, prepare_all(data, SPEC, limit=3)[0])
