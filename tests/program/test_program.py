from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgevit.errors import OutputError, ProgramError
from edgevit.program.program import Program, expected_shapes, is_program, load_program, save_program
from edgevit.program.spec import GateSpec, OriginalEvaluation, OriginalSpec, ProgramSpec
from edgevit.util import renames
from tests.tiny import tiny_program

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"gated": True, "skip": True},
    {"prefix": 0, "gated": True},
    {"depth": 3, "tokens": "1:4,2:3"},
    {"prefix": 2, "head_prefix": 2},
    {"prefix": 5, "pool": "mean", "stem_norm": True},
    {"removed": ("b00_mhsa", "b01_ffn"), "skip": True},
    {"qk_norm": True, "activation": "silu", "image": (24, 40), "labels": ("one", "zwei", "\u4e09") + ("",) * 7},
)


def same(one: Program, two: Program) -> bool:
    return one.spec == two.spec and all(
        np.array_equal(a.view(np.uint32), two.weights[n].view(np.uint32)) for n, a in one.weights.items()
    )


@pytest.mark.parametrize("options", VARIANTS)
def test_round_trip_is_exact(options: dict[str, Any], tmp_path: Path) -> None:
    program = tiny_program(**options)
    save_program(program, tmp_path / "p")
    assert same(program, load_program(tmp_path / "p"))
    assert is_program(tmp_path / "p")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["p", "program.json", "weights.safetensors"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=32, max_size=32))
def test_every_finite_float_survives(bits: list[int], tmp_path: Path) -> None:
    """Subnormals, minus zero and the largest values included."""
    program = tiny_program()
    values = np.array(bits, dtype=np.uint32).view(np.float32)
    values = np.where(np.isfinite(values), values, np.float32(-0.0))
    program = program.with_weights({"stem.bias": values})
    save_program(program, tmp_path / "p", force=True)
    assert same(program, load_program(tmp_path / "p"))


def test_half_storage_rounds_once(tmp_path: Path) -> None:
    program = tiny_program()
    save_program(program, tmp_path / "p", storage="float16")
    loaded = load_program(tmp_path / "p")
    assert all(
        np.array_equal(loaded.weights[n], a.astype(np.float16).astype(np.float32)) for n, a in program.weights.items()
    )
    save_program(loaded, tmp_path / "q", storage="float16")
    assert same(loaded, load_program(tmp_path / "q"))


def test_same_program_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_program(tiny_program(gated=True), tmp_path / name)
    for file in ("program.json", "weights.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_existing_folder_is_kept_unless_forced(tmp_path: Path) -> None:
    save_program(tiny_program(1), tmp_path / "p")
    with pytest.raises(OutputError, match="--replace-program"):
        save_program(tiny_program(2), tmp_path / "p")
    assert same(tiny_program(1), load_program(tmp_path / "p"))
    save_program(tiny_program(2), tmp_path / "p", force=True)
    assert same(tiny_program(2), load_program(tmp_path / "p"))
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_an_interrupted_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_program(tiny_program(1), tmp_path / "p")
    monkeypatch.setattr(renames, "rename", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_program(tiny_program(2), tmp_path / "p", force=True)
    monkeypatch.undo()
    assert same(tiny_program(1), load_program(tmp_path / "p"))
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_force_never_replaces_what_is_no_program(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "thesis.tex").write_text("years")
    with pytest.raises(OutputError, match=r"docs is not a Program and nothing else \(in the way: thesis\.tex\)"):
        save_program(tiny_program(), docs, force=True)
    save_program(tiny_program(1), tmp_path / "p")
    (tmp_path / "p" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"in the way: notes\.txt"):
        save_program(tiny_program(2), tmp_path / "p", force=True)
    assert (docs / "thesis.tex").read_text() == "years" and (tmp_path / "p" / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["docs", "p"]


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        save_program(tiny_program(), tmp_path / "file" / "p")


def test_weights_are_read_only() -> None:
    program = tiny_program()
    with pytest.raises(ValueError, match="read-only"):
        program.weights["stem.bias"][0] = 1.0
    with pytest.raises(TypeError):
        program.weights["stem.bias"] = np.zeros(32)  # type: ignore[index]


def broken(change: Any) -> tuple[ProgramSpec, dict[str, np.ndarray]]:
    program = tiny_program(gated=True)
    spec, weights = program.spec, dict(program.weights)
    return change(spec, weights) or spec, weights


def branch_with(spec: ProgramSpec, index: int, **changes: Any) -> ProgramSpec:
    branches = list(spec.branches)
    branches[index] = dataclasses.replace(branches[index], **changes)
    return dataclasses.replace(spec, branches=tuple(branches))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s, w: w.__delitem__("stem.bias"), r"missing array stem.bias \[32\]"),
        (lambda s, w: w.update(extra=np.zeros(2)), r"unexpected array extra \[2\]"),
        (lambda s, w: w.update({"stem.bias": np.zeros(3)}), r"stem.bias has shape \[3\], expected \[32\]"),
        (lambda s, w: w.update({"stem.bias": np.full(32, np.nan)}), "stem.bias holds values that are not finite"),
        (lambda s, w: branch_with(s, 0, kept=(1, 0)), "kept units must be increasing"),
        (lambda s, w: branch_with(s, 0, kept=(0, 2)), "below 2"),
        (lambda s, w: branch_with(s, 0, kept=()), "is removed and cannot have a gate"),
        (lambda s, w: branch_with(s, 1, name="b00_mhsa"), "branch names repeat"),
        (lambda s, w: branch_with(s, 0, scale=0.0), "scale"),
        (lambda s, w: branch_with(s, 0, head_dim=0), "head_dim"),
        (lambda s, w: dataclasses.replace(s, stem=dataclasses.replace(s.stem, patch=0)), "patch"),
        (lambda s, w: dataclasses.replace(s, stem=dataclasses.replace(s.stem, patch=7)), "multiple of the patch"),
        (lambda s, w: dataclasses.replace(s, stem=dataclasses.replace(s.stem, prefix=-1)), "prefix"),
        (lambda s, w: dataclasses.replace(s, dim=0), "dim"),
        (lambda s, w: dataclasses.replace(s, norm_eps=-1.0), "eps"),
        (lambda s, w: dataclasses.replace(s, head=dataclasses.replace(s.head, prefix=3)), "prefix tokens"),
        (lambda s, w: dataclasses.replace(s, labels=("a",)), "labels"),
        (lambda s, w: dataclasses.replace(s, image=dataclasses.replace(s.image, std=(1.0, 0.0, 1.0))), "std"),
        (lambda s, w: dataclasses.replace(s, image=dataclasses.replace(s.image, crop_pct=0.0)), "crop_pct"),
    ],
)
def test_an_inconsistent_program_is_refused(change: Any, reason: str) -> None:
    spec, weights = broken(change)
    with pytest.raises(ProgramError, match=reason):
        Program(spec=spec, weights=weights)


OUT_OF_RANGE = [
    *(("image", {"crop_pct": v}, "crop_pct") for v in (0.0, -1.0, 1e308, 1e-300)),
    ("image", {"height": 1024, "crop_pct": 0.1}, "asks for 10240 pixels before the crop"),
    *(("image", {side: v}, rf"image\.{side} is") for side in ("height", "width") for v in (0, -32, 10**9, 2**62)),
    *(("image", {"mean": (v, 0.0, 0.0)}, "mean") for v in (1e308, -1e7)),
    *(("image", {"std": (1.0, v, 1.0)}, "std") for v in (0.0, -1.0, 1e-300, 1e300)),
    *(("stem", {"patch": v}, "patch") for v in (0, -1, 10**9)),
    *(("stem", {"prefix": v}, "stem.prefix") for v in (-1, 10**12)),
    ("stem", {"token_dim": 10**12}, "token_dim"),
    *(("head", {"classes": v}, "head.classes") for v in (0, -1, 10**12)),
    *(("head", {"prefix": v}, "head.prefix") for v in (-1, 10**12)),
    *(("branch", {"units_total": v}, "units_total") for v in (-1, 10**12)),
    *(("branch", {"head_dim": v}, "head_dim") for v in (-1, 0, 10**9)),
    *(("branch", {"scale": v}, "scale") for v in (0.0, -1.0, 1e300, 1e-300)),
    *(("branch", {"gate": GateSpec(pool="mean", threshold=v)}, "threshold") for v in (1e308, -1e308, 1e21)),
    *(("", {"dim": v}, "dim") for v in (0, -1, 10**9)),
    *(("", {key: v}, "eps") for key in ("norm_eps", "qk_norm_eps") for v in (0.0, -1.0, 1e300, 1e-300)),
    *(("", {"origin": {"class_numbers": v}}, "class_numbers") for v in ("a b", "1", "-1 " * 10, "9" * 5000, "١ " * 10)),
]


@pytest.mark.parametrize(("part", "changes", "reason"), OUT_OF_RANGE)
def test_a_number_out_of_range_is_refused_before_anything_is_built(
    part: str, changes: dict[str, Any], reason: str
) -> None:
    program = tiny_program()
    spec = program.spec
    if part == "branch":
        spec = branch_with(spec, 0, **changes)
    elif part:
        spec = dataclasses.replace(spec, **{part: dataclasses.replace(getattr(spec, part), **changes)})
    else:
        spec = dataclasses.replace(spec, **changes)
    with pytest.raises(ProgramError, match=reason) as caught:
        Program(spec=spec, weights=program.weights)
    assert "array" not in str(caught.value), "the arrays were looked at first"
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("answers", ["a b", "1 2", "1 2 3 4", "1  2 3", "1 2 -3", "1 2 " + "9" * 5000])
def test_answers_of_the_original_are_as_many_numbers_as_images(answers: str) -> None:
    program = tiny_program()

    def with_answers(text: str) -> Program:
        evaluation = OriginalEvaluation(source="s", images=3, classes=10, answers=text)
        original = OriginalSpec(name="o", weights_sha256="", macs=1, parameters=1, evaluations=(evaluation,))
        return Program(spec=dataclasses.replace(program.spec, original=original), weights=program.weights)

    assert with_answers("1 2 3").spec.original
    with pytest.raises(ProgramError, match="answers of 's' is .*, expected 3 whole numbers"):
        with_answers(answers)


def test_very_many_faults_are_shortened(tmp_path: Path) -> None:
    save_program(tiny_program(), tmp_path / "p")
    document = json.loads((tmp_path / "p" / "program.json").read_text())
    document["spec"]["branches"] = [{}] * 60_000
    (tmp_path / "p" / "program.json").write_text(json.dumps(document))
    with pytest.raises(ProgramError, match=r"\.\.\. and \d+ more$") as caught:
        load_program(tmp_path / "p")
    assert str(caught.value).count("\n") == 41


def test_all_faults_are_listed_at_once() -> None:
    program = tiny_program()
    weights = {n: a for n, a in program.weights.items() if not n.startswith("b01")}
    with pytest.raises(ProgramError) as caught:
        Program(spec=program.spec, weights=weights)
    assert str(caught.value).count("missing array") == 12


def test_a_class_token_gate_needs_a_class_token() -> None:
    spec = tiny_program(prefix=0, gated=True).spec
    spec = branch_with(spec, 0, gate=GateSpec(pool="prefix", threshold=0.0))
    with pytest.raises(ProgramError, match="needs one"):
        Program(spec=spec, weights={n: np.zeros(s) for n, s in expected_shapes(spec).items()})


@pytest.mark.parametrize("file", ["program.json", "weights.safetensors"])
@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b"[1]", b"\xff\xfe", b'{"schema": 99}', b'{"schema": 1, "spec": 3}']
)
def test_missing_and_broken_files(file: str, content: bytes | None, tmp_path: Path) -> None:
    save_program(tiny_program(), tmp_path / "p")
    (tmp_path / "p" / file).unlink()
    if content is not None:
        (tmp_path / "p" / file).write_bytes(content)
    with pytest.raises(ProgramError):
        load_program(tmp_path / "p")


def test_no_folder(tmp_path: Path) -> None:
    assert not is_program(tmp_path / "none")
    with pytest.raises(ProgramError, match="is not a readable Program"):
        load_program(tmp_path / "none")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "p"
    save_program(tiny_program(gated=True, skip=True), folder)
    return folder


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_damaged_folder_is_a_program_error_or_loads(data: st.DataObject, saved: Path) -> None:
    """Bytes changed or cut anywhere in either file: never another exception."""
    copy = saved.with_name(f"copy{os.getpid()}")
    shutil.copytree(saved, copy)
    try:
        path = copy / data.draw(st.sampled_from(["program.json", "weights.safetensors"]))
        raw = bytearray(path.read_bytes())
        if data.draw(st.booleans(), label="cut"):
            raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
        else:
            # Mostly in the part that has structure: the safetensors header comes first.
            raw[data.draw(st.integers(0, min(len(raw) - 1, 4000)))] = data.draw(st.integers(0, 255))
        path.write_bytes(raw)
        try:
            load_program(copy)
        except ProgramError as error:
            assert str(error)
    finally:
        shutil.rmtree(copy)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_value_in_the_document_is_a_program_error_or_loads(data: st.DataObject, saved: Path) -> None:
    """One value anywhere in program.json replaced by any JSON value."""
    document = json.loads((saved / "program.json").read_text())
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            places.append((value, key))
            walk(value[key])

    walk(document)
    container, key = data.draw(st.sampled_from(range(len(places))).map(places.__getitem__))
    values = st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats() | st.text(max_size=3)
    container[key] = data.draw(values | st.lists(values, max_size=2) | st.dictionaries(st.text(max_size=2), values))
    copy = saved.with_name(f"json{os.getpid()}")
    copy.mkdir()
    try:
        (copy / "program.json").write_text(json.dumps(document))
        (copy / "weights.safetensors").symlink_to(saved / "weights.safetensors")
        try:
            load_program(copy)
        except ProgramError as error:
            assert str(error)
    finally:
        shutil.rmtree(copy)
