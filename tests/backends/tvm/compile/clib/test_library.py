"""The C library of a model: what the virtual machine computes, to the last bit, with nothing of a runtime."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevit.errors import BoundError, OutputError
from tests.absent import unavailable
from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_program

import_or_skip()

from edgevit.backends.tvm.compile.clib import link  # noqa: E402
from edgevit.backends.tvm.compile.clib.source import Library, checked_name  # noqa: E402
from edgevit.backends.tvm.compile.emit import Lowered  # noqa: E402
from edgevit.backends.tvm.compile.toolchain import Toolchain  # noqa: E402
from edgevit.backends.tvm.run.plugin import SYMBOL  # noqa: E402
from edgevit.backends.tvm.run.process import SYSROOT  # noqa: E402
from edgevit.util.machines import emulator_path  # noqa: E402
from tests.backends.tvm.compile.clib.programs import (  # noqa: E402
    EFFORTS,
    SANITIZED,
    WARNINGS,
    assert_equal,
    compiler,
    expected,
    lowered,
    made,
    outputs,
    used,
)

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="written for x86-64, with aarch64 emulated")
PROGRAM = tiny_program(gated=True, skip=True)
FOLLOWING = "1:1-30@0.8,2:1-15@0.8"
# Large enough for its kernels to be shared out.
WIDE = tiny_program(dim=192, heads=3, hidden=768, gated=True, skip=True)


@pytest.fixture(scope="module")
def program() -> Lowered:
    return lowered(PROGRAM)


@pytest.fixture(scope="module")
def tools() -> Toolchain:
    return compiler()


@pytest.fixture(scope="module")
def folder(program: Lowered, tools: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    made(program, path, tools)
    return path


def test_it_is_the_virtual_machine_to_the_last_bit(folder: Path, program: Lowered, tools: Toolchain) -> None:
    """A program of C99 without warnings, at several efforts; and the archive is what the shared library is."""
    assert_equal(outputs(folder, [used(folder, tools)], program), expected(program))


def test_with_musl_too_and_nothing_of_glibc(program: Lowered, tmp_path: Path) -> None:
    tools = compiler(libc="musl")
    made(program, tmp_path, tools)
    path = used(tmp_path, tools, options=("-static",))
    assert b"GLIBC" not in path.read_bytes()
    assert_equal(outputs(tmp_path, [path], program), expected(program))


@pytest.mark.parametrize(("kind", "cpu"), [("neon", "cortex-a53"), ("dotprod", "cortex-a76")])
def test_for_aarch64_it_runs_in_an_emulator(kind: str, cpu: str, tmp_path: Path) -> None:
    """Outputs are those of the build's own machine code there, which other tests hold against the reference."""
    emulator = emulator_path()
    if emulator is None:
        unavailable("qemu is not installed; on Debian: apt install qemu-user-static")
    from edgevit.backends.reference import reference_with_margins
    from edgevit.onnx_form.assemble import assemble
    from tests.tiny import tiny_images

    program, tools = lowered(PROGRAM, kind), compiler("aarch64")
    made(program, tmp_path, tools)
    got = outputs(tmp_path, [emulator, "-cpu", cpu, "-L", SYSROOT, used(tmp_path, tools)], program)
    reference = reference_with_margins(assemble(PROGRAM))
    for index, effort in enumerate((0.0, float("inf"), float("-inf"))):
        logits, gates, *_ = reference(tiny_images(PROGRAM.spec, 3)[:1], effort)
        assert abs(got[index][0] - logits).max() < 2e-5 and (got[index][1] == gates).all()


def test_sanitizers_and_valgrind_find_nothing(program: Lowered, tools: Toolchain, tmp_path: Path) -> None:
    if shutil.which("valgrind") is None:
        unavailable("valgrind is not installed; on Debian: apt install valgrind")
    made(program, tmp_path, tools)
    path = used(tmp_path, tools)
    command = ["valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full", str(path)]
    assert_equal(outputs(tmp_path, command, program), expected(program))
    # The sources that the archive was made of are compiled anew, with the checks of the sanitizers.
    with_checks = Library(name="tiny", title="A tiny ViT", lowered=program, text=text_of(program))
    archive, _ = link.compiled(with_checks, built(program), sources(with_checks, tmp_path / "work"), tools, ())
    kernels = archive.parent / "kernels.o"
    watched = tmp_path / "watched"
    tools.run(
        *(*WARNINGS, *SANITIZED, "-I", archive.parent, tmp_path / "use_tiny.c", archive.parent / "tiny.c", kernels),
        *("-o", watched),
    )
    assert_equal(outputs(tmp_path, [watched], program), expected(program))


def text_of(program: Lowered) -> str:
    return str(built(program)["as_text"]())


def built(program: Lowered) -> Any:
    from edgevit.backends.tvm.compile import library

    return library.build(program)


def sources(of: Library, folder: Path) -> Path:
    folder.mkdir()
    for name, text in of.files().items():
        (folder / name).write_text(text)
    return folder


def test_it_asks_for_nothing_that_takes_memory_or_opens_files(folder: Path) -> None:
    """What it defines is the header's alone, with no name of the kernels; and nothing in it says where it was made."""
    for name, options in (("libtiny.a", ("-g",)), ("libtiny.so", ("-D",))):
        path = folder / "lib" / name
        listed = subprocess.run(["nm", *options, path], capture_output=True, text=True, check=True).stdout
        asked = set(re.findall(r"^ +[Uw] (\S+)$", listed, re.M))
        given = set(re.findall(r"^[0-9a-f]+ [A-Z] (\S+)$", listed, re.M)) - {SYMBOL}
        assert asked <= {"memcpy", "memset", "memmove", "_GLOBAL_OFFSET_TABLE_"}, asked
        assert given == {f"tiny_{part}" for part in ("version", "message", "size", "init", "run", "listen")}
        assert b"/tmp" not in path.read_bytes() and b"tvm/" not in path.read_bytes()
    needed = subprocess.run(["readelf", "-d", folder / "lib/libtiny.so"], capture_output=True, text=True, check=True)
    assert set(re.findall(r"NEEDED.*\[(.*)\]", needed.stdout)) <= {"libc.so.6"}


def test_what_could_allocate_is_refused() -> None:
    assert link.check_symbols("         U memcpy\n         U expf\n0000 T run\n", pooled=False) == {"memcpy", "expf"}
    for name in ("malloc", "fopen", "TVMBackendAllocWorkspace", "pthread_create", "_Znwm"):
        with pytest.raises(BoundError, match=f"asks for {name}: what that takes"):
            link.check_symbols(f"         U memcpy\n         U {name}\n", pooled=False)


def test_symbols_of_a_newer_glibc_than_the_targets_are_refused() -> None:
    listed = "         U memcpy@GLIBC_2.14\n         U exp@GLIBC_2.29\n         w __gmon_start__\n"
    for libc in ("glibc", "musl", "glibc-2.29", "glibc-2.31"):
        link.check_versions(listed, Toolchain(arch="x86_64", cc="gcc", libc=libc))
    with pytest.raises(OutputError, match=r"asks for exp of glibc 2\.29, the target says glibc-2\.17"):
        link.check_versions(listed, Toolchain(arch="x86_64", cc="gcc", libc="glibc-2.17"))


def test_equal_models_give_equal_files(folder: Path, program: Lowered, tools: Toolchain, tmp_path: Path) -> None:
    made(program, tmp_path, tools)
    names = sorted(path.name for path in (folder / "lib").iterdir())
    assert names == ["deadline.h", "example.c", "libtiny.a", "libtiny.so", "tiny.c", "tiny.h", "tiny_weights.S"]
    for name in names:
        assert (folder / "lib" / name).read_bytes() == (tmp_path / "lib" / name).read_bytes(), name


REFUSED = r"""
#include "tiny.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

extern const unsigned char tiny_weights[TINY_WEIGHTS_BYTES];
static unsigned char memory[TINY_MEMORY_BYTES + 64] __attribute__((aligned(64)));
static unsigned char image[TINY_IMAGE_BYTES + 64] __attribute__((aligned(64)));
static unsigned char other[TINY_WEIGHTS_BYTES] __attribute__((aligned(64)));

int main(void) {
  tiny_state *model = NULL;
  const size_t size = TINY_MEMORY_BYTES, bytes = TINY_WEIGHTS_BYTES;
  printf("%d ", tiny_init(NULL, memory, size, tiny_weights, bytes));
  printf("%d ", tiny_init(&model, NULL, size, tiny_weights, bytes));
  printf("%d ", tiny_init(&model, memory, size, NULL, bytes));
  printf("%d ", tiny_init(&model, memory + 8, size, tiny_weights, bytes));
  printf("%d ", tiny_init(&model, memory, size - 1, tiny_weights, bytes));
  printf("%d ", tiny_init(&model, memory, size, tiny_weights, bytes - 1));
  printf("%d ", tiny_init(&model, memory, size, other, bytes));
  printf("%d ", model != NULL);
  printf("%d ", tiny_init(&model, memory, size, tiny_weights, bytes));
  printf("%d ", tiny_run(NULL, image, 0, NULL, NULL));
  printf("%d ", tiny_run(model, NULL, 0, NULL, NULL));
  printf("%d ", tiny_run(model, image + 1, 0, NULL, NULL));
  printf("%d ", tiny_run(model, image, NAN, NULL, NULL));
  printf("%d\n", tiny_run(model, image, 0, NULL, NULL));
  for (int status = -1; status < 10; ++status) printf("%s\n", tiny_message(status));
  return 0;
}
"""


def test_wrong_uses_are_refused_and_weights_can_be_linked(folder: Path, tools: Toolchain, tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(REFUSED)
    shutil.copy(folder / "model.weights", tmp_path)
    subprocess.run([tools.cc, "-c", folder / "lib" / "tiny_weights.S"], cwd=tmp_path, check=True)
    tools.run(
        *(*WARNINGS, "-I", folder / "lib", tmp_path / "main.c", tmp_path / "tiny_weights.o"),
        *(folder / "lib" / "libtiny.a", "-o", tmp_path / "main"),
    )
    told, *messages = subprocess.run(
        [tmp_path / "main"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert told == "1 1 1 2 3 4 4 0 0 1 1 2 5 0"
    assert messages[1] == "done" and len(set(messages)) == 10 and messages[0] == messages[-1]


TWO = r"""
#include "first.h"
#include "second.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static unsigned char memory[4][FIRST_MEMORY_BYTES + SECOND_MEMORY_BYTES] __attribute__((aligned(64)));
extern const unsigned char first_weights[FIRST_WEIGHTS_BYTES], second_weights[SECOND_WEIGHTS_BYTES];
static unsigned char image[FIRST_IMAGE_BYTES] __attribute__((aligned(64)));
static float alone[2][FIRST_CLASSES];
static int wrong[4];

static int once(int index, float *logits) {
  first_state *first;
  second_state *second;
  if (index % 2) {
    return second_init(&second, memory[index], SECOND_MEMORY_BYTES, second_weights, SECOND_WEIGHTS_BYTES) ||
           second_run(second, image, 0, logits, NULL);
  }
  return first_init(&first, memory[index], FIRST_MEMORY_BYTES, first_weights, FIRST_WEIGHTS_BYTES) ||
         first_run(first, image, 0, logits, NULL);
}

static void *thread(void *given) {
  const int index = *(int *)given;
  for (int i = 0; i < 40; ++i) {
    float logits[FIRST_CLASSES];
    wrong[index] += once(index, logits) || memcmp(logits, alone[index % 2], sizeof logits);
  }
  return NULL;
}

int main(int count, char **words) {
  pthread_t threads[4];
  pthread_attr_t small;
  int numbers[4] = {0, 1, 2, 3};
  FILE *file = fopen(words[count - 1], "rb");
  if (!file || fread(image, 1, sizeof image, file) != sizeof image || fclose(file)) return 1;
  if (once(0, alone[0]) || once(1, alone[1])) return 2;
  /* The stack that headers promise, and nothing more. */
  if (pthread_attr_init(&small) || pthread_attr_setstacksize(&small, 64 << 10)) return 4;
  for (int i = 0; i < 4; ++i) pthread_create(&threads[i], &small, thread, &numbers[i]);
  for (int i = 0; i < 4; ++i) pthread_join(threads[i], NULL);
  return wrong[0] + wrong[1] + wrong[2] + wrong[3] || !memcmp(alone[0], alone[1], sizeof alone[0]) ? 3 : 0;
}
"""


def test_two_models_in_one_program_each_in_two_threads_of_little_stack(tools: Toolchain, tmp_path: Path) -> None:
    parts: list[str | Path] = []
    for seed, name in ((0, "first"), (1, "second")):
        place = tmp_path / name
        program = lowered(tiny_program(seed=seed, gated=True, skip=True, depth=1 + seed))
        made(program, place, tools, name=name)
        subprocess.run([tools.cc, "-c", place / "lib" / f"{name}_weights.S"], cwd=place, check=True)
        parts += ["-I", place / "lib", place / f"{name}_weights.o", place / "lib" / f"lib{name}.a"]
    (tmp_path / "main.c").write_text(TWO)
    tools.run(*WARNINGS, "-pthread", tmp_path / "main.c", *parts, "-o", tmp_path / "main")
    done = subprocess.run([tmp_path / "main", tmp_path / "first" / "images"], check=False, timeout=60)
    assert done.returncode == 0, done


def test_numbers_of_tokens_that_follow_the_image_are_told(tools: Toolchain, tmp_path: Path) -> None:
    program = lowered(tiny_program(seed=1, depth=3, image=(64, 64), gated=True, skip=True, tokens=FOLLOWING))
    made(program, tmp_path, tools)
    # Through all runs, so that what they print stays what it is.
    stop = "if (TINY_POINTS != 2 || tiny_tokens(model)[0] <= tiny_tokens(model)[1]) return 18;"
    path = used(tmp_path, tools, stop=stop)
    assert_equal(outputs(tmp_path, [path], program), expected(program))


def test_threads_for_aarch64_too(tmp_path: Path) -> None:
    emulator, tools = emulator_path(), compiler("aarch64")
    if emulator is None:
        unavailable("qemu is not installed; on Debian: apt install qemu-user-static")
    program = lowered(WIDE, "neon", threads=2)
    made(program, tmp_path, tools)
    found = []
    for number in (1, 2):
        starts, stops = (f"if (tiny_start(model, {each}) != TINY_OK) return 19;" for each in (number, 1))
        path = used(tmp_path, tools, options=("-pthread",), start=starts, stop=stops)
        found.append(outputs(tmp_path, [emulator, "-cpu", "cortex-a53", "-L", SYSROOT, path], program))
    assert_equal(*found)


@pytest.mark.parametrize("libc", ["glibc", "musl"])
def test_threads_that_are_asked_for_change_no_bit_and_too_many_are_refused(libc: str, tmp_path: Path) -> None:
    program, tools = lowered(WIDE, threads=3), compiler(libc=libc)
    made(program, tmp_path, tools)
    wanted = expected(lowered(WIDE))
    refused = "if (tiny_start(model, 4) != TINY_THREADS || tiny_start(model, 0) != TINY_THREADS) return 18;"
    for number in (1, 2, 3):
        starts, stops = (f"if (tiny_start(model, {each}) != TINY_OK) return 19;" for each in (number, 1))
        path = used(tmp_path, tools, options=("-pthread",), start=refused + "\n  " + starts, stop=stops)
        assert_equal(outputs(tmp_path, [path], program), wanted)


def test_the_shared_library_tells_of_itself(folder: Path) -> None:
    class Told(ctypes.Structure):
        _fields_ = [(n, ctypes.c_uint32) for n in ("library", "threads")]
        _fields_ += [(n, ctypes.c_uint64) for n in ("memory", "arena", "weights", "image")]
        _fields_ += [(n, ctypes.c_uint32) for n in ("classes", "branches", "points")]

    told = Told.in_dll(ctypes.CDLL(os.fspath(folder / "lib/libtiny.so")), SYMBOL)
    assert (told.library, told.threads, told.classes, told.branches, told.points) == (1, 1, 10, 4, 0)
    assert told.image == 3072 and told.weights == (folder / "model.weights").stat().st_size
    header = (folder / "lib" / "tiny.h").read_text()
    assert f"#define TINY_MEMORY_BYTES {told.memory}\n" in header


def test_its_example_maps_weights_and_tells_the_likeliest_classes(
    folder: Path, program: Lowered, tools: Toolchain, tmp_path: Path
) -> None:
    lib = folder / "lib"
    tools.run(*WARNINGS, "-O2", "-I", lib, lib / "example.c", lib / "libtiny.a", "-o", tmp_path / "example")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([tmp_path / "example", *arguments], capture_output=True, text=True, check=False)

    image = tmp_path / "image"
    image.write_bytes((folder / "images").read_bytes()[:3072])
    for index, effort in enumerate(EFFORTS[:3]):
        done = run(folder / "model.weights", image, effort)
        logits, gates = expected(program)[index]
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 6
        assert done.stdout.startswith(f"class {logits.argmax()}: {logits.max():.9g}\n")
        assert f"{' '.join(map(str, gates))} (branches that ran)" in done.stdout
    assert run().returncode == 2
    assert run(folder / "model.weights", image, "loud").stderr == "the effort is no number: loud\n"
    assert "No such file" in run(folder / "absent", image).stderr
    (tmp_path / "other").write_bytes(bytes((folder / "model.weights").stat().st_size))
    assert "these are not this model's weights" in run(tmp_path / "other", image).stderr
    for size in (0, 3071, 3073):
        (tmp_path / "other").write_bytes(bytes(size))
        for given in ((tmp_path / "other", image), (folder / "model.weights", tmp_path / "other")):
            assert run(*given).stderr == f"{tmp_path / 'other'}: it has another size than this model takes\n"


DEADLINE = r"""
#include "deadline.h"

#include <stdint.h>
#include <stdio.h>

/* A clock that does not tick: a run takes 4 to 12 ms by effort, times 0.8, and times 1.5 in the middle. */
int main(void) {
  deadline control = deadline_of(10, -2, 2);
  for (int i = 0; i < 600; ++i) {
    const double took = (4 + 2 * (control.effort + 2)) * (i / 200 == 1 ? 1.5 : 0.8);
    deadline_took(&control, took);
    printf("%.6f %.6f\n", took, (double)control.effort);
  }
  printf("%ld %ld\n", control.runs, control.late);
  return 0;
}
"""


def test_the_deadline_loop_lowers_effort_and_raises_it_again(folder: Path, tools: Toolchain, tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(DEADLINE)
    tools.run(*WARNINGS, "-I", folder / "lib", tmp_path / "main.c", "-o", tmp_path / "main")
    *lines, last = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout.splitlines()
    took, effort = np.array([line.split() for line in lines], dtype=float).T
    assert took.size == 600 and last.split() == ["600", str((took > 10).sum())]
    assert (effort[:200] == 2).all() and (took[:200] < 10).all()  # nothing is given up while there is time
    assert took[200] == 18 and effort[200] < 2 and effort[250:400].max() < 1.5  # half as slow again: less is computed
    assert np.percentile(took[200:400], 95) <= 10 < took[200]  # where the dearest run is always late
    assert effort[-1] > 1.5 and (took[400:] < 10).all()  # and nearly all of it again


@pytest.mark.parametrize("name", ["", "a b", "Vit", "1st", "a-b", "x" * 49, "vit;"])
def test_names_that_are_no_names_in_c_are_refused(name: str) -> None:
    with pytest.raises(BoundError, match="cannot be named"):
        checked_name(name)
