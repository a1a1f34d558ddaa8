"""What `make` installs: locked with hashes, as pyproject.toml asks, and under licences that ask nothing of a user."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / ".ci" / "locks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Licences that let anyone use, change and ship what is under them; MPL-2.0 asks for changes to its own files only.
LICENCES = frozenset(
    (
        "0BSD",
        "Apache-2.0",
        "BSD",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "CC0-1.0",
        "ISC",
        "MIT",
        "MIT-CMU",
        "MPL-2.0",
    )
    + ("MIT-0", "PSF-2.0", "Unlicense", "Zlib")
)
# How packages write them that do not use the standard's expressions.
SPELLINGS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "PSFL": "PSF-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}

# How the texts of licences begin, for packages that state no more.
BEGIN = {
    "Apache-2.0": r"\s*Apache License\s+Version 2\.0, January 2004\s",
    "MIT": r"\s*MIT License\s+Copyright .*\s+Permission is hereby granted, free of charge",
}


def locked(name: str) -> dict[str, list[Requirement]]:
    """Package to its pinned requirements, one per marker; every one has a hash."""
    found: dict[str, list[Requirement]] = {}
    for entry in re.split(r"\n(?=\S)", (LOCKS / name).read_text(encoding="utf-8").strip()):
        line, *hashes = entry.replace("\\\n", "\n").split("\n")
        requirement = Requirement(line.strip())
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), f"{line} is not pinned"
        assert hashes and all(re.fullmatch(r" *--hash=sha256:[0-9a-f]{64} *", text) for text in hashes), line
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def asked(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for, with extras, but edgevit itself."""
    lines = [*PROJECT["dependencies"]]
    lines += [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize(
    ("lock", "extras"), [("run.txt", ("tvm",)), ("test.txt", ("openvino", "tvm", "sign", "train", "dev"))]
)
def test_the_locks_hold_what_is_asked_for(lock: str, extras: tuple[str, ...]) -> None:
    pinned = locked(lock)
    for requirement in asked(*extras):
        if requirement.name == "torch":
            assert "torch" not in pinned, "torch has no one hash: it comes in a build per kind of machine"
            assert f"torch{requirement.specifier}" in (ROOT / "Makefile").read_text(encoding="utf-8")
            continue
        for entry in pinned[canonicalize_name(requirement.name)]:
            version = str(entry.specifier).removeprefix("==")
            assert requirement.specifier.contains(Version(version)), f"{requirement} is locked as {version}"


def test_the_demo_installs_nothing_that_only_training_or_testing_needs() -> None:
    assert not {"pytest", "timm", "torchvision", "mypy", "ruff", "matplotlib"} & set(locked("run.txt"))
    small, whole = locked("run.txt"), locked("test.txt")
    assert {name: [str(r) for r in entries] for name, entries in small.items()} == {
        name: [str(r) for r in entries] for name, entries in whole.items() if name in small
    }


def licences(name: str) -> set[str]:
    """Every licence that an installed package states, under its standard name."""
    about = metadata.metadata(name)
    for expression in about.get_all("License-Expression") or []:
        return set(re.split(r" (?:AND|OR) ", re.sub(r" WITH [\w.-]+|[()]", "", expression)))
    classifiers = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    stated = classifiers or re.split(r" (?:AND|OR) ", (about.get_all("License") or [_by_its_text(name)])[0])
    return {SPELLINGS.get(text, text) for text in stated}


def _by_its_text(name: str) -> str:
    """The licence of a package whose metadata names its text alone."""
    files = metadata.metadata(name).get_all("License-File") or []
    texts = [metadata.distribution(name).read_text(f"licenses/{file}") or "" for file in files]
    found = {next((name for name, begin in BEGIN.items() if re.match(begin, text)), "not stated") for text in texts}
    return found.pop() if len(found) == 1 else "not stated"


def test_every_dependency_is_under_a_licence_that_asks_nothing_of_a_user() -> None:
    here = [
        name
        for name, entries in locked("test.txt").items()
        if any(e.marker is None or e.marker.evaluate() for e in entries)
    ]
    assert len(here) > 50
    wrong = {name: found - LICENCES for name in [*here, "torch"] if (found := licences(name)) - LICENCES}
    assert not wrong, f"look at these licences, and add them to the list if they may be depended on: {wrong}"
