"""Kernels that several threads share: the same numbers as on one, whoever computes them, and who waits for whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevit.backends.reference import reference_with_margins
from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program
from edgevit.schema.quant_plan import QuantPlan, attention_names
from edgevit.verify.parity import check_parity
from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_images, tiny_program

import_or_skip()

import tvm_ffi  # noqa: E402

from edgevit.backends import tvm as backend  # noqa: E402
from edgevit.backends.tvm.codegen import threads  # noqa: E402
from edgevit.backends.tvm.codegen.code import Code, buffer, load, number  # noqa: E402
from edgevit.backends.tvm.codegen.dots import dot  # noqa: E402
from edgevit.backends.tvm.codegen.layout import Arena, Place  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import Tile, isa  # noqa: E402
from edgevit.backends.tvm.compile import library  # noqa: E402
from edgevit.backends.tvm.compile.emit import lower  # noqa: E402
from edgevit.backends.tvm.inspect.counts import assembly, count_int8  # noqa: E402
from edgevit.backends.tvm.kernels import attention, attention_int8, attention_registers  # noqa: E402
from edgevit.backends.tvm.kernels.heads import Heads, block_rows  # noqa: E402
from edgevit.backends.tvm.memory_bound import MACHINE_BYTES  # noqa: E402
from edgevit.backends.tvm.run.pool import Pool  # noqa: E402
from edgevit.backends.tvm.run.runner import TvmRunner, aligned  # noqa: E402
from edgevit.backends.tvm.run.runner import load as load_here  # noqa: E402
from edgevit.errors import DeviceError  # noqa: E402
from tests.backends.tvm import native_runner  # noqa: E402
from tests.backends.tvm.compile.test_emit import TIGHT, VARIANTS  # noqa: E402
from tests.backends.tvm.compiled import AVX2, kernel  # noqa: E402
from tests.backends.tvm.parts.test_t2t_stem import FLOAT, t2t  # noqa: E402
from tests.backends.tvm.test_emit_int8 import planned  # noqa: E402

EFFORTS = (1e9, 0.0, -1e9)
PROGRAM = tiny_program(gated=True, skip=True, gate_pool="mean")


@pytest.fixture(autouse=True, scope="module")
def small_kernels_are_shared_too() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "WORTH", 0)
        yield


def runner(program: Program, count: int, plan: QuantPlan | None = None) -> TvmRunner:
    return library.runner(lower(program, replace(AVX2, threads=count), plan))


def assert_equal(model: TvmRunner, other: TvmRunner, program: Program, times: int = 1) -> None:
    for image in tiny_images(program.spec, 2):
        for effort in EFFORTS:
            expected = other.run(image[None], effort)
            for _ in range(times):
                for got, wanted in zip(model.run(image[None], effort), expected, strict=True):
                    np.testing.assert_array_equal(got, wanted)


def running() -> int:
    """Threads of this process."""
    return len(list(Path("/proc/self/task").iterdir()))


@given(count=st.integers(1, 9), units=st.integers(0, 300))
def test_every_unit_is_in_one_part_and_no_part_is_empty(count: int, units: int) -> None:
    size, found = threads.size(count, units), threads.parts(count, units)
    assert found <= count
    shared = [list(range(units))[part * size : (part + 1) * size] for part in range(found)]
    assert sum(shared, []) == list(range(units)) and (units == 0 or all(shared))
    assert threads.gain(count, units) == pytest.approx(units / max(map(len, shared)) if units else 1)


@pytest.mark.parametrize(("count", "units", "largest"), [(2, 50, 25), (2, 66, 33), (4, 50, 14), (3, 1, 1)])
def test_blocks_are_chosen_so_that_parts_are_even(count: int, units: int, largest: int) -> None:
    block = threads.even_block(count, units, 4)
    assert 2 <= block <= 8 and min(threads.size(count, -(-units // block)) * block, units) <= largest
    assert threads.even_block(1, units, 4) == min(units, 4)


@pytest.mark.parametrize(
    ("count", "rows", "tile", "given", "block"),
    [(2, 197, 6, 18, 33), (2, 197, 3, 9, 9), (1, 197, 6, 24, 24), (2, 4, 6, 4, 4), (4, 197, 6, 24, 25)],
)
def test_blocks_end_with_a_part_of_a_tile_where_that_shares_rows_more_evenly(
    count: int, rows: int, tile: int, given: int, block: int
) -> None:
    assert threads.even_rows(count, rows, Tile(rows=tile, vectors=4), 4, given) == block


@pytest.mark.parametrize("name", ["gates on the mean", "registers, qk-norm", "the same, joined and normed", "removed"])
def test_every_form_gives_the_same_bits_as_one_thread(name: str) -> None:
    program = tiny_program(seed=1, **VARIANTS[name])
    assert_equal(runner(program, 3), runner(program, 1), program)


def test_it_is_the_reference_on_every_path() -> None:
    reference = reference_with_margins(assemble(PROGRAM))
    check_parity(reference, runner(PROGRAM, 2), tiny_images(PROGRAM.spec, 4), TIGHT)


def test_int8_gives_the_same_bits_and_is_counted_where_the_threads_run_it() -> None:
    program = tiny_program(seed=1, gated=True, dim=36, heads=3, hidden=50)
    plan = planned(program)
    plan = replace(plan, attentions=attention_names(program.spec))
    assert_equal(runner(program, 2, plan), runner(program, 1, plan), program)
    for count in (1, 2):
        lowered = lower(program, replace(AVX2, threads=count), plan)
        found = count_int8(lowered, assembly(library.build(lowered)))
        assert len(found) > 10 and all(k.int8 for k in found)


def test_performers_add_up_what_each_thread_summed() -> None:
    program = t2t("t2t_performer", 12)
    reference = reference_with_margins(assemble(program), optimised=False)
    check_parity(reference, runner(program, 2), tiny_images(program.spec, 2), FLOAT)


def test_t2t_with_full_attention_gives_the_same_bits() -> None:
    program = t2t("t2t_transformer", 12)
    assert_equal(runner(program, 2), runner(program, 1), program)


ROLES = ("query", "key", "value")


def test_threads_have_scratch_of_their_own_in_the_arena() -> None:
    heads = Heads(count=3, width=16, stride=16, **{n: Place(offset=0, rows=197, width=48, stride=144) for n in ROLES})
    shared, tile = replace(AVX2, threads=3), Tile(rows=3, vectors=2)
    for made, own in (
        (lambda a: attention.scratch(a, heads, tile, shared), ("scores", "inverse")),
        (
            lambda a: attention_int8.scratch(a, heads, dot(shared, 7), tile, shared),
            ("query", "scale", "scores", "shares", "inverse"),
        ),
    ):
        arena = Arena(AVX2.lanes)
        work = made(arena)
        rows = block_rows(shared, heads, tile)
        each = [work.of(threads.Part(index=i, end=0, count=3)) for i in range(3)]
        places = sorted((getattr(w, n).offset, getattr(w, n).end) for w in each for n in own)
        assert all(end <= begin for (_, end), (begin, _) in zip(places, places[1:], strict=False))
        assert places[-1][1] <= arena.size and work.scores.rows == rows
    needed = [lower(PROGRAM, replace(AVX2, threads=count)).arena for count in (1, 2, 3)]
    assert needed[0] < needed[1] <= needed[2]


@pytest.mark.parametrize("form", [attention, attention_int8, attention_registers])
def test_heads_that_several_threads_pack_have_places_of_their_own(form: ModuleType) -> None:
    """Nobody waits before the next head is packed, so none of it may lie where another one is still read."""
    heads = Heads(count=3, width=64, stride=64, **{n: Place(offset=0, rows=197, width=192, stride=576) for n in ROLES})
    for count in (1, 2):
        shared, tile = replace(isa("avx512vnni"), threads=count), Tile(rows=6, vectors=4)
        arena = Arena(shared.lanes)
        how = () if form is attention else (dot(shared, 7),)
        work = form.scratch(arena, heads, *how, tile, shared)
        assert bool(work.apart) == (count > 1)
        if work.apart:
            found = [place for index in range(3) for place in packed_of(work.head(index))]
            places = sorted((place.offset, place.end) for place in found)
            assert all(end <= begin for (_, end), (begin, _) in zip(places, places[1:], strict=False))
            assert places[-1][1] <= (work.scores if form is attention else work.query).offset


def packed_of(work: Any) -> list[Place]:
    """The places of what is packed of a head."""
    sides = (work.keys, work.values)
    found = [
        p for side in sides for p in ((side,) if isinstance(side, Place) else (side.words, side.scale, side.start))
    ]
    return found if getattr(work, "tops", None) is None else [*found, work.tops]


def test_largest_values_have_a_row_for_every_part_of_the_tokens() -> None:
    heads = Heads(count=3, width=64, stride=64, **{n: Place(offset=0, rows=197, width=192, stride=576) for n in ROLES})
    for count in (1, 2, 3):
        shared = replace(isa("avx512vnni"), threads=count)
        work = attention_registers.scratch(Arena(16), heads, dot(shared, 7), Tile(rows=6, vectors=4), shared)
        assert work.tops is not None and (work.tops.rows, work.tops.width) == (count, 64)


def test_what_is_for_one_thread_is_done_once_in_a_team() -> None:
    code, memory = Code(), buffer("memory", 16)
    with threads.team(code, 2) as phase, code.loop(100), phase(), threads.shared(code, 2, 1):
        code.store(memory, 0, load(memory, 0) + number(1.0))
    values, run = aligned((16,), np.float32), kernel(code.function([memory]))
    pool = Pool(2)
    for _ in range(50):
        pool.call(run, tvm_ffi.from_dlpack(values))
    pool.close()
    assert values[0] == 5000


def test_nobody_leaves_a_phase_before_all_are_through() -> None:
    """The second thread takes long to write what the first one reads in the next phase."""
    code, memory = Code(), buffer("memory", 64)
    with threads.team(code, 2) as phase:
        with phase(), threads.shared(code, 2, 2) as part:
            with code.loop(part.index * 20000):
                code.store(memory, 16, load(memory, 16) * number(0.5) + number(1.0))
            code.store(memory, part.index * 32, number(7.0))
        with phase(), threads.shared(code, 2, 2) as part:
            code.store(memory, part.index * 32 + 1, load(memory, 32 - part.index * 32))
    values, run, pool = aligned((64,), np.float32), kernel(code.function([memory])), Pool(2)
    for _ in range(20):
        values[:] = 0
        pool.call(run, tvm_ffi.from_dlpack(values))
        assert values[[0, 1, 32, 33]].tolist() == [7, 7, 7, 7]
    pool.close()


def test_an_error_of_a_kernel_comes_to_the_caller() -> None:
    pool = Pool(2)
    with pytest.raises(ZeroDivisionError):
        pool.call(lambda: 1 / 0)
    assert pool.call(max, 1, 2) == 2
    pool.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same model for one thread and for two."""
    made = {}
    for count in (1, 2):
        made[count] = tmp_path_factory.mktemp(f"threads{count}")
        library.write(lower(PROGRAM, replace(AVX2, threads=count)), made[count])
    return made


def test_as_many_threads_run_as_were_asked_for_and_none_for_one(folders: dict[int, Path]) -> None:
    image = tiny_images(PROGRAM.spec, 1)
    expected = load_here(folders[1]).run(image)
    for folder, asked, more in ((1, None, 0), (2, 1, 0), (2, None, 1)):
        before = running()
        model = load_here(folders[folder], asked)
        got = model.run(image)
        # The thread that calls works too.
        assert running() - before == more
        model.close()
        assert running() == before
        np.testing.assert_array_equal(got[0], expected[0])


def test_more_threads_than_there_are_parts_are_refused(folders: dict[int, Path]) -> None:
    with pytest.raises(DeviceError, match="compiled for 2 threads, got 3; omit --threads, or build for a target"):
        backend.load(folders[2], threads=3)


def test_the_runner_without_python_does_the_same(folders: dict[int, Path], tmp_path: Path) -> None:
    native, image = native_runner.here(tmp_path), tmp_path / "image.rgb"
    pixels = tiny_images(PROGRAM.spec, 1)
    pixels.tofile(image)
    expected = load_here(folders[1]).run(pixels)
    for folder, options in ((1, ()), (2, ()), (2, ("--threads", 1)), (2, ("--threads", 2))):
        done = native.start(folders[folder], image, "--json", "--top", 1000, *options)
        assert done.returncode == 0 and not done.stderr, done.stderr
        for got, wanted in zip(native_runner.outputs(native_runner.read(done)), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
    for folder, asked in ((1, 2), (2, 3)):
        done = native.start(folders[folder], image, "--threads", asked)
        told = f"the kernels are shared out among {folder}, got --threads {asked}; give fewer"
        assert done.returncode == 2 and told in done.stderr


def test_a_run_touches_no_more_than_the_bound_says(tmp_path: Path) -> None:
    """Of DeiT-Ti's shapes, one block; the allowance covers the stack of a thread that first works in the run."""
    program = tiny_program(dim=192, heads=3, hidden=768, image=(224, 224), patch=16, depth=1)
    library.write(lower(program, replace(AVX2, threads=2)), tmp_path)
    (tmp_path / backend.PROGRAM).mkdir(parents=True)
    native_runner.here(tmp_path / backend.PROGRAM)
    bound, image = backend.memory(tmp_path).activations + MACHINE_BYTES, tiny_images(program.spec, 1)
    touched = [backend.touched(tmp_path, image, 0.0)[0] for _ in range(5)]
    assert all(bytes_ is not None and 0.9 * bound < bytes_ <= bound for bytes_ in touched), touched
    for asked, used in ((None, 2), (1, 1)):
        started = backend.start(tmp_path, threads=asked)
        started.run(image)
        assert len(list(Path(f"/proc/{started._process.pid}/task").iterdir())) == used
        started.close()


def test_aarch64_runs_on_two_threads_in_an_emulator(tmp_path: Path) -> None:
    native, image = native_runner.emulated(tmp_path), tmp_path / "image.rgb"
    pixels = tiny_images(PROGRAM.spec, 1)
    pixels.tofile(image)
    library.write(lower(PROGRAM, replace(isa("neon"), threads=2)), tmp_path)
    answers = []
    for asked in (1, 2):
        done = native.start(tmp_path, image, "--json", "--top", 1000, "--threads", asked)
        assert done.returncode == 0 and not done.stderr, done.stderr
        answers.append(native_runner.outputs(native_runner.read(done)))
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    expected, _ = runner(PROGRAM, 1).run(pixels)
    np.testing.assert_allclose(answers[0][0], expected, atol=1e-5)
