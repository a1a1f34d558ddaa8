"""Programs in C that use a model's library, compiled for several C libraries and run here or in an emulator."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgevit.backends.tvm.codegen.schedules import isa
from edgevit.backends.tvm.compile import library
from edgevit.backends.tvm.compile.clib import link
from edgevit.backends.tvm.compile.clib.source import Library
from edgevit.backends.tvm.compile.emit import Lowered, lower
from edgevit.backends.tvm.compile.toolchain import Toolchain, toolchain
from edgevit.errors import RuntimeMissingError
from edgevit.program.program import Program
from tests.absent import unavailable
from tests.tiny import tiny_images

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wstrict-prototypes", "-Werror")
SANITIZED = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
EFFORTS = ("0", "inf", "-inf", "0.5")
# Prints logits as they are in memory, and gates, of every image at every effort.
USE = r"""
#include "NAME.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned char memory[NAME_MEMORY_BYTES] __attribute__((aligned(64)));
static unsigned char weights[NAME_WEIGHTS_BYTES] __attribute__((aligned(64)));
static unsigned char image[NAME_IMAGE_BYTES] __attribute__((aligned(64)));

int main(int count, char **words) {
  name_state *model;
  float logits[NAME_CLASSES];
  unsigned char gates[NAME_BRANCHES + 1];
  FILE *file = fopen(words[1], "rb");
  if (!file || fread(weights, 1, sizeof weights, file) != sizeof weights || fclose(file)) return 10;
  int status = name_init(&model, memory, sizeof memory, weights, sizeof weights);
  if (status || strcmp(name_version(), NAME_VERSION) || name_size() != sizeof memory) return 20 + status;
  START
  file = fopen(words[2], "rb");
  if (!file) return 11;
  while (fread(image, 1, sizeof image, file) == sizeof image)
    for (int i = 3; i < count; ++i) {
      status = name_run(model, image, strtof(words[i], NULL), logits, gates);
      if (status) return 30 + status;
      for (int j = 0; j < NAME_CLASSES; ++j) {
        unsigned bits;
        memcpy(&bits, &logits[j], sizeof bits);
        printf("%u ", bits);
      }
      for (int j = 0; j < NAME_BRANCHES; ++j) printf("%d ", gates[j]);
      printf("\n");
    }
  STOP
  return fclose(file) ? 12 : 0;
}
"""


def compiler(arch: str = "x86_64", libc: str = "glibc") -> Toolchain:
    """A toolchain; skips where it is not installed."""
    try:
        return toolchain(arch, libc=libc)
    except RuntimeMissingError as error:
        unavailable(str(error))


def lowered(program: Program, kind: str = "avx2", threads: int = 1) -> Lowered:
    return lower(program, replace(isa(kind), threads=threads))


def made(
    program: Lowered, folder: Path, tools: Toolchain, *, name: str = "tiny", options: Sequence[str] = WARNINGS
) -> Library:
    """The library in `folder`/lib, with its weights and three images beside it."""
    executable = library.build(program)
    result = Library(name=name, title="A tiny ViT", lowered=program, text=str(executable["as_text"]()))
    link.write(result, executable, folder, tools, options=options)
    (folder / "model.weights").write_bytes(b"".join(values.tobytes() for _, values in program.weights))
    (folder / "images").write_bytes(tiny_images(program.spec, 3).tobytes())
    return result


def used(
    folder: Path, tools: Toolchain, *, name: str = "tiny", options: Sequence[str] = (), start: str = "", stop: str = ""
) -> Path:
    """A program that is linked with the archive."""
    text = USE.replace("NAME", name.upper()).replace(f"{name.upper()}.h", f"{name}.h").replace("name_", f"{name}_")
    (folder / f"use_{name}.c").write_text(text.replace("START", start).replace("STOP", stop))
    path = folder / f"use_{name}"
    source, archive = folder / f"use_{name}.c", folder / "lib" / f"lib{name}.a"
    tools.run(*WARNINGS, *options, "-O1", "-I", folder / "lib", source, archive, "-o", path)
    return path


def outputs(folder: Path, command: Sequence[str | Path], program: Lowered) -> list[tuple[np.ndarray, np.ndarray]]:
    """What it printed: logits `[1, classes]` and gates of the three images at every effort."""
    arguments = [*command, folder / "model.weights", folder / "images", *EFFORTS]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and not done.stderr, done
    classes, found = program.spec.head.classes, []
    for line in done.stdout.splitlines():
        numbers = [int(word) for word in line.split()]
        logits = np.array(numbers[:classes], dtype=np.uint32).view(np.float32)[None]
        found.append((logits, np.array(numbers[classes:], dtype=np.uint8)))
    return found


def expected(program: Lowered) -> list[tuple[np.ndarray, np.ndarray]]:
    """What the virtual machine makes of the same."""
    machine = library.runner(program)
    images = tiny_images(program.spec, 3)[:, None]
    found = [machine.run(image, float(effort)) for image in images for effort in EFFORTS]
    machine.close()
    return found


def assert_equal(got: list[tuple[np.ndarray, np.ndarray]], wanted: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """To the last bit."""
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
