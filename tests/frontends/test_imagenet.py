from __future__ import annotations

import pytest

from edgevit.frontends.imagenet import SUBSETS, imagenet_names, named_subset


@pytest.mark.parametrize(
    ("tag", "classes", "subset"),
    [
        ("fb_in1k", 1000, "imagenet-1k"),
        ("augreg_in21k_ft_in1k", 1000, "imagenet-1k"),
        ("augreg_in21k", 21843, "imagenet-21k"),
        ("in21k", 11221, "imagenet-21k-miil"),
        ("openai_ft_in12k", 11821, "imagenet-12k"),
        ("fb_in1k", 10, None),
        ("openai", 1000, None),
        ("", 1000, None),
    ],
)
def test_the_tag_and_the_number_of_classes_say_which(tag: str, classes: int, subset: str | None) -> None:
    assert named_subset(tag, classes) == subset


def test_names_are_in_the_order_of_the_classes() -> None:
    names = imagenet_names("imagenet-1k")
    assert names[0].startswith("tench") and names[207] == "golden retriever" and names[574] == "golf ball"
    assert {subset: len(imagenet_names(subset)) for subset in SUBSETS} == SUBSETS
