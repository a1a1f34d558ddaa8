from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

from edgevit.backends import Source
from edgevit.errors import TargetError
from edgevit.program.program import Program
from edgevit.schema.quant_plan import LinearPlan, QuantPlan, linear_names
from edgevit.schema.target import load_target
from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_images, tiny_program

import_or_skip()

from edgevit.backends import tvm as backend  # noqa: E402
from edgevit.backends.tvm.codegen.dots import dot  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import (  # noqa: E402
    Isa,
    Product,
    Tile,
    default_tile,
    isa,
    tiles,
)
from edgevit.backends.tvm.compile import emit, library, tune  # noqa: E402
from edgevit.backends.tvm.compile.emit import lower  # noqa: E402
from edgevit.backends.tvm.parts.stage import Choose  # noqa: E402

AVX2 = isa("avx2")
SHAPES = (Product(rows=50, columns=64, depth=32), Product(rows=40, columns=48, depth=16))


class Clock:
    """Time that passes only when a kernel runs."""

    def __init__(self, cost: Callable[[Tile], float]) -> None:
        self.now, self.cost, self.prepared = 0.0, cost, 0

    def __call__(self) -> float:
        return self.now

    def prepare(self, isa: Isa, shape: Product, tile: Tile) -> Callable[[], None]:
        self.prepared += 1

        def run() -> None:
            self.now += self.cost(tile)

        return run


def searched(cost: Callable[[Tile], float], seconds: float = 1e9) -> dict[Product, Tile]:
    clock = Clock(cost)
    return tune.search(SHAPES, AVX2, seconds, prepare=clock.prepare, clock=clock)


def test_the_fastest_tile_is_found() -> None:
    assert searched(lambda tile: 1.0 if tile == Tile(rows=6, vectors=2) else 2.0) == {
        shape: Tile(rows=6, vectors=2) for shape in SHAPES
    }


def test_the_default_stays_where_others_are_hardly_faster() -> None:
    defaults = {shape: default_tile(AVX2, shape) for shape in SHAPES}
    assert searched(lambda tile: 1.0 if tile in defaults.values() else 0.99) == defaults


@pytest.mark.parametrize("cost", [1e-6, 3e-5, 1e-3])
def test_short_products_are_timed_many_calls_at_once(cost: float) -> None:
    """A clock that moves on in steps of 0.1 ms tells them apart nevertheless."""
    clock = Clock(lambda tile: 0.9 * cost if tile == Tile(rows=6, vectors=2) else cost)

    def coarse() -> float:
        return int(clock.now / 1e-4) * 1e-4

    found = tune.search(SHAPES[:1], AVX2, 1e9, prepare=clock.prepare, clock=coarse)
    assert found == {SHAPES[0]: Tile(rows=6, vectors=2)}


@pytest.mark.parametrize(("seconds", "done"), [(0.0, 0), (1.0, 1), (1e9, 2)])
def test_time_is_bounded(seconds: float, done: int) -> None:
    assert list(searched(lambda _: 1.0, seconds)) == list(SHAPES[:done])


def test_products_of_a_program_come_largest_first() -> None:
    program = tiny_program()
    found = tune.products(program, AVX2)
    sizes = [p.rows * p.columns * p.depth for p in found]
    assert sizes == sorted(sizes, reverse=True)
    assert Product(rows=16, columns=32, depth=192) in found  # the stem
    assert Product(rows=17, columns=96, depth=32) in found  # query, key and value


def test_int8_products_are_searched_apart_from_float_ones() -> None:
    program = tiny_program()
    entries = tuple(LinearPlan(name=name, int8=name != "head") for name in linear_names(program.spec))
    plan = QuantPlan(linears=entries, weight_bits=7)
    found = tune.products(program, AVX2, plan)
    how = dot(AVX2, 7)
    assert Product(rows=17, columns=96, depth=32, dot=how) in found  # query, key and value
    assert Product(rows=17, columns=17, depth=16) in found  # scores
    (wanted,) = (p for p in found if p.dot and p.depth == 192)
    table = tune.search([wanted], AVX2, 60)
    tile = Tile(rows=1, vectors=2)
    assert how.registers(table[wanted]) <= AVX2.registers
    image = tiny_images(program.spec, 1)
    plain, tuned = (
        library.runner(lower(program, AVX2, plan, choose=choose)).run(image)[0]
        for choose in (default_tile, tune.chosen({**table, wanted: tile}))
    )
    # Sums of integers do not depend on their order.
    np.testing.assert_array_equal(tuned, plain)


def test_a_tuned_model_is_the_same_function() -> None:
    program = tiny_program()
    table = tune.search(tune.products(program, AVX2)[:3], AVX2, 60)
    assert len(table) == 3
    image = tiny_images(program.spec, 1)
    plain, tuned = (
        library.runner(lower(program, AVX2, choose=choose)).run(image)[0]
        for choose in (default_tile, tune.chosen(table))
    )
    np.testing.assert_allclose(tuned, plain, atol=1e-5)


def test_what_was_found_is_kept_and_not_searched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, odd, searched = tiny_program(), Tile(rows=1, vectors=1), []

    def search(wanted: Iterable[Product], isa: Isa, seconds: float) -> dict[Product, Tile]:
        searched.append(tuple(wanted))
        return dict.fromkeys(searched[-1][: int(seconds)], odd)

    monkeypatch.setattr(tune, "search", search)
    every = tune.products(program, AVX2)
    choose = tune.tuned(program, AVX2, None, 2, cache=tmp_path / "cache")
    assert [choose(AVX2, p) == odd for p in every[:3]] == [True, True, False]
    tune.tuned(program, AVX2, None, 1, cache=tmp_path / "cache")
    choose = tune.tuned(program, AVX2, None, 0.0, cache=tmp_path / "cache")
    assert searched == [every, every[2:], every[3:]]
    assert [choose(AVX2, p) == odd for p in every[:4]] == [True, True, True, False]
    (path,) = (tmp_path / "cache").iterdir()
    for damaged in ("", "[]", path.read_text().replace("1\n ]", "99\n ]")):  # tiles of 99 vectors fit no registers
        path.write_text(damaged)
        searched.clear()
        tune.tuned(program, AVX2, None, 0.0, cache=tmp_path / "cache")
        assert searched == [every]


def test_a_kept_default_is_not_searched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some defaults are not among the tiles that are tried: those of a single row in int8."""
    program, searched = tiny_program(), []
    plan = QuantPlan(linears=tuple(LinearPlan(name=n, int8=True) for n in linear_names(program.spec)), weight_bits=7)

    def search(wanted: Iterable[Product], isa: Isa, seconds: float) -> dict[Product, Tile]:
        searched.append(tuple(wanted))
        return {product: default_tile(isa, product) for product in searched[-1]}

    monkeypatch.setattr(tune, "search", search)
    choices = [tune.tuned(program, AVX2, plan, 1, cache=tmp_path) for _ in range(2)]
    every = tune.products(program, AVX2, plan)
    assert searched == [every] and any(default_tile(AVX2, p) not in tiles(AVX2, p) for p in every)
    assert [choices[0](AVX2, p) for p in every] == [choices[1](AVX2, p) for p in every]


def test_tiles_are_searched_only_where_they_run(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"tiles for i8mm .* this machine .* cannot do; omit --tune"):
        tune.tuned(tiny_program(), isa("i8mm"), None, 1, cache=tmp_path)
    assert not list(tmp_path.iterdir())


class Given(Exception):
    """Carries what the emitter was given."""


def test_a_build_takes_what_was_found_if_it_has_time_to_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, odd = tiny_program(), Tile(rows=1, vectors=1)
    target = replace(load_target("x86-64-v3-tvm"), int8=False, attention="float32")

    def stop(program: Program, isa: Isa, plan: QuantPlan | None, *, choose: Choose) -> None:
        raise Given(choose)

    monkeypatch.setattr(tune, "user_cache", lambda: tmp_path)
    monkeypatch.setattr(tune, "search", lambda wanted, isa, seconds: dict.fromkeys(wanted, odd))
    (product, *_) = tune.products(program, AVX2)
    monkeypatch.setattr(emit, "lower", stop)
    monkeypatch.setattr(tune, "products", lambda *_: (product,))
    source = Source(program=program, plan=None, model=ModelProto(), target=target)
    for seconds, tile in ((0.0, default_tile(AVX2, product)), (1.0, odd)):
        with pytest.raises(Given) as given:
            backend.build(replace(source, tune_s=seconds), tmp_path)
        assert given.value.args[0](AVX2, product) == tile
