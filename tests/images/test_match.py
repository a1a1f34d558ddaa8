"""The labels of a source become a model's classes by name, number or order, or are refused; never by a guess."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevit.errors import ImagesError
from edgevit.images.image_set import load_images, number_labels
from edgevit.images.labelled import open_labelled, place_set
from edgevit.images.match import Basis, Labelling, chance_warning, natural_key, place_labels
from edgevit.program.spec import ProgramSpec
from tests.pictures import SPEC, class_folders, npz, packed, picture_bytes
from tests.tiny import tiny_spec

TEN = tuple(f"class_{i}" for i in range(1, 11))
ANIMALS = ("gnu", "ant", "fox")


def spec(count: int = 10, labels: tuple[str, ...] = (), numbers: str = "") -> ProgramSpec:
    made = tiny_spec(classes=count, labels=labels)
    return replace(made, origin={"class_numbers": numbers}) if numbers else made


def placed(basis: Basis, names: dict[int, str], model: ProgramSpec) -> tuple[list[int], str]:
    labels, how = place_labels(np.array(list(names), np.int64), Labelling(basis=basis, names=names), model, "set")
    return labels.tolist(), how


def refused(basis: Basis, names: dict[int, str], model: ProgramSpec) -> str:
    with pytest.raises(ImagesError) as error:
        placed(basis, names, model)
    return str(error.value)


def evaluated(source: Path, model: ProgramSpec) -> tuple[dict[str, int], list[str]]:
    """Every image's class in the model, alike for a build and for training, and what was said."""
    said: list[str] = []
    loaded = number_labels(load_images(source, SPEC, labelled=True), model, said.append)
    trained, how = place_set(open_labelled(source), model)
    assert loaded.labels is not None and trained.labels is not None
    assert trained.labels.tolist() == loaded.labels.tolist()
    assert said == ([how] if how else [])
    return dict(zip(loaded.names, loaded.labels.tolist(), strict=True)), said


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1), max_size=8))
def test_natural_order_is_timms(names: list[str]) -> None:
    from edgevit.frontends.timm_import import timm

    names = [name for name in names if not any(c.isdigit() and not c.isdecimal() for c in name)]  # timm fails on ²
    expected = sorted(sorted(names), key=timm.utils.misc.natural_key)
    assert sorted(names, key=natural_key) == expected


def test_natural_order_of_names_that_timm_cannot_sort() -> None:
    assert sorted(["m²", "m10", "m9", "M9"], key=natural_key) == ["M9", "m9", "m10", "m²"]


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_folders_are_in_natural_order_in_every_container(kind: str, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set", TEN, 2)
    found, said = evaluated(folder if kind == "folder" else packed(folder, kind), spec())
    assert {name.split("/")[-2]: label for name, label in found.items()} == {f"class_{i + 1}": i for i in range(10)}
    assert "the model has no class names; its 10 class folders are taken as the classes in natural order" in said[0]
    assert "class_1 as class 0 to class_10 as class 9" in said[0]


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "table", "npz"])
def test_names_decide_where_both_have_names(kind: str, tmp_path: Path) -> None:
    """The model's order is not the alphabet's: gnu, ant, fox."""
    folder = class_folders(tmp_path / "set", tuple(sorted(ANIMALS)), 1)
    source = folder
    if kind in ("tar", "zip"):
        source = packed(folder, kind)
    elif kind == "table":
        rows = "ant/0.png,17,ant\nfox/0.png,30,Fox\ngnu/0.png,2,gnu"
        (folder / "labels.csv").write_text(f"file,label,name\n{rows}")
    elif kind == "npz":
        raws = [picture_bytes(i) for i in range(3)]
        source = npz(tmp_path / "set.npz", raws, classes=np.array(["ant", "fox", "gnu"]))
    found, said = evaluated(source, spec(3, ANIMALS))
    assert list(found.values()) == [1, 2, 0]
    assert "matched to the model's" in said[0] and "by name" in said[0]


def test_some_of_a_models_classes_are_found_by_name(tmp_path: Path) -> None:
    found, _ = evaluated(class_folders(tmp_path / "set", ("fox", "gnu"), 1), spec(3, ANIMALS))
    assert list(found.values()) == [2, 0]


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("chain_saw", "chain saw"),
        ("Chain-Saw", "chain saw"),
        (" chain  saw", "chain saw"),
        ("tench", "tench, Tinca tinca"),
        ("Tinca_tinca", "tench, Tinca tinca"),
        ("tench,_Tinca_tinca", "tench, Tinca tinca"),
        ("te\N{COMBINING CIRCUMFLEX ACCENT}te", "tête"),
        ("n01440764", "n01440764"),
        ("STRASSE", "Straße"),
    ],
)
def test_case_spaces_and_synonyms_do_not_matter(folder: str, label: str) -> None:
    assert placed("order", {0: folder, 1: "zoo"}, spec(3, ("other", label, "zoo")))[0] == [1, 2]


def test_names_that_match_in_part_are_refused() -> None:
    said = refused("order", {0: "ant", 1: "elk", 2: "fox"}, spec(3, ANIMALS))
    assert "2 of 3 class folders are called like classes of tiny, the others are not: elk" in said


def test_a_name_of_two_classes_is_told_apart_by_the_number_or_refused() -> None:
    cranes = spec(3, ("crane", "fox", "crane"))
    assert placed("given", {0: "crane", 1: "fox", 2: "crane"}, cranes) == ([0, 1, 2], "")
    assert "1 of 2 class folders" in refused("order", {1: "crane", 0: "fox"}, cranes)


@pytest.mark.parametrize("count", [9, 11])
def test_a_count_that_cannot_fit_is_refused(count: int) -> None:
    names = {i: f"c{i}" for i in range(count)}
    said = refused("order", names, spec())
    assert f"{count} class folders" in said and "10 classes (0 to 9)" in said and "cannot be told" in said
    assert "none is called like a class" in refused("order", names, spec(labels=TEN))
    assert placed("order", {i: f"c{i}" for i in range(10)}, spec(labels=TEN))[0] == list(range(10))


def test_order_says_nothing_where_the_classes_have_numbers_of_their_own() -> None:
    assert "cannot be told" in refused("order", {0: "a", 1: "b"}, spec(2, numbers="7 40"))


@pytest.mark.parametrize("numbers", [range(10), (0, 9), (0,)])
def test_whole_numbers_that_count_from_0_are_class_numbers(numbers: range | tuple[int, ...]) -> None:
    got, how = placed("number", {n: "" for n in numbers}, spec())
    assert got == list(numbers) and "taken as class numbers" in how


def test_whole_numbers_of_a_model_with_numbers_of_its_own() -> None:
    assert placed("number", {40: "", 7: ""}, spec(2, numbers="7 40"))[0] == [1, 0]
    assert "got 3; tiny has 2 classes (7, 40)" in refused("number", {3: "", 7: ""}, spec(2, numbers="7 40"))


@pytest.mark.parametrize("numbers", [range(1, 11), range(1, 10), (7, 9)])
def test_whole_numbers_without_0_are_refused(numbers: range | tuple[int, ...]) -> None:
    said = refused("number", {n: "" for n in numbers}, spec())
    assert "whether they count from 0 or from 1 cannot be told" in said
    assert "labels.csv" in said and "--labels" in said


def test_whole_numbers_match_labels_that_are_numbers(tmp_path: Path) -> None:
    """What the refusal advises: --labels with the folders' names."""
    folder = class_folders(tmp_path / "set", tuple(f"{i:02}" for i in range(1, 11)), 1)
    found, said = evaluated(folder, spec(labels=tuple(map(str, range(1, 11)))))
    assert list(found.values()) == list(range(10)) and "by name" in said[0]
    shutil.rmtree(folder / "10")
    (folder / "01").rename(folder / "00")
    with pytest.raises(ImagesError, match="2 is the name of class 1"):
        evaluated(folder, spec(labels=tuple(map(str, range(1, 11)))))


def test_1_and_01_are_two_classes(tmp_path: Path) -> None:
    found, said = evaluated(class_folders(tmp_path / "set", ("01", "1"), 1), spec(2))
    assert sorted(found.values()) == [0, 1] and "natural order" in said[0]


def test_labels_that_are_given_are_class_numbers() -> None:
    assert placed("given", {2: "", 0: ""}, spec()) == ([2, 0], "")
    assert placed("given", {2: "elk", 0: "owl"}, spec(3, ANIMALS)) == ([2, 0], "")
    assert placed("given", {40: "", 7: ""}, spec(2, numbers="7 40")) == ([1, 0], "")
    assert "got 10; tiny has 10 classes (0 to 9)" in refused("given", {10: "", 1: ""}, spec())


def test_names_that_contradict_the_numbers() -> None:
    five = spec(5, ("ant", "bee", "cat", "dog", "eel"))
    turned = {0: "bee", 1: "ant", 2: "cat"}
    assert placed("given", turned, five)[0] == [1, 0, 2]
    said = refused("given", {**turned, 3: "elk"}, five)
    assert "its label 0 is 'bee', which is class 1 of tiny, and names the model does not have: elk" in said
    # One class is named in another way, as in lists where two classes share a name: the numbers are the file's word.
    got, how = placed("given", {0: "ant", 1: "ant", 2: "cat", 3: "dog"}, five)
    assert got == [0, 1, 2, 3] and how.startswith("warning: ") and "1 of 4 class names" in how


def test_an_image_without_a_label_keeps_none() -> None:
    got, _ = place_labels(np.array([-1, 1]), Labelling(basis="given", names={1: ""}), spec(), "set")
    assert got.tolist() == [-1, 1]


def test_folders_of_all_splits_count(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", ("a", "b", "c"), 1)
    class_folders(tmp_path / "val", ("b", "c"), 1)
    loaded = number_labels(load_images(tmp_path, SPEC, labelled=True, splits=("val",)), spec(3))
    assert loaded.labels is not None and loaded.labels.tolist() == [1, 2]
    held, _ = place_set(open_labelled(tmp_path, split="val"), spec(3))
    assert held.labels is not None and held.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("top1", "images", "classes", "warns"),
    [
        (0.1, 60, 10, True),
        (0.2, 60, 10, True),
        (0.3, 60, 10, False),
        (0.983, 60, 10, False),
        (0.0, 60, 1000, True),
        (0.01, 500, 1000, False),
        (0.1, 19, 10, False),
        (0.5, 60, 2, True),
        (0.02, 60, 2, True),
        (0.7, 60, 2, False),
        (0.0, 60, 1, False),
    ],
)
def test_a_model_near_chance_is_warned_of(top1: float, images: int, classes: int, warns: bool) -> None:
    said = chance_warning(top1, images, classes)
    assert bool(said) == warns
    assert not warns or said.startswith(f"warning: the float model's own top-1 is {top1:.1%} on {images} images")
