"""Run single kernels for aarch64 in an emulator: an object file, forty lines of C around it, and nothing of TVM."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.backends.tvm.codegen.schedules import Isa
from edgevit.backends.tvm.compile.passes import compile_kernels
from edgevit.backends.tvm.run.process import SYSROOT
from edgevit.util.machines import emulator_path
from tests.absent import unavailable

COMPILER = "aarch64-linux-gnu-gcc"
MAIN = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
typedef struct { void *data; int32_t device, id, axes; uint8_t code, bits; uint16_t lanes;
                 int64_t *shape, *strides; uint64_t offset; } Tensor;
typedef struct { int32_t type, pad; Tensor *tensor; } Any;
int __tvm_ffi_kernel(void *self, const Any *arguments, int32_t count, Any *result);
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  for (int i = 0; i < count; ++i) if (parts[i]) fputs(parts[i], stderr);
  exit(2);
}
int main(int count, char **paths) {
  Any arguments[2] = {0}, result = {0};
  for (int i = 0; i < 2; ++i) {
    FILE *file = fopen(paths[i + 1], "rb");
    fseek(file, 0, SEEK_END);
    int64_t *words = malloc(sizeof(int64_t));
    *words = ftell(file) / 4;
    rewind(file);
    Tensor *t = calloc(1, sizeof(Tensor));
    *t = (Tensor){aligned_alloc(64, (*words * 4 + 63) / 64 * 64), 1, 0, 1, 2, 32, 1, words, NULL, 0};
    if (fread(t->data, 4, *words, file) != (size_t)*words) return 3;
    fclose(file);
    arguments[i] = (Any){7, 0, t};
  }
  if (__tvm_ffi_kernel(NULL, arguments, 2, &result)) return 4;
  FILE *file = fopen(paths[1], "wb");
  fwrite(arguments[0].tensor->data, 4, *arguments[0].tensor->shape, file);
  return fclose(file);
}
"""


def require() -> str:
    """The emulator; skips where a tool is missing."""
    found = emulator_path()
    if found is None:
        unavailable("qemu is not installed; on Debian: apt install qemu-user-static")
    if shutil.which(COMPILER) is None:
        unavailable(f"{COMPILER} is not installed; on Debian: apt install gcc-aarch64-linux-gnu")
    return found


def call(function: Any, memory: np.ndarray, values: np.ndarray, isa: Isa, cpu: str, folder: Path) -> None:
    """Compile a kernel over an arena and weights, run it on `cpu`, and put what it made of the arena into `memory`."""
    emulator = require()
    compile_kernels({"kernel": function}, isa.target).mod.write_to_file(str(folder / "kernel.o"))
    (folder / "main.c").write_text(MAIN)
    command = [COMPILER, "-O1", "-o", "run", "main.c", "kernel.o"]
    subprocess.run(command, check=True, cwd=folder, timeout=60)
    memory.tofile(folder / "arena")
    values.tofile(folder / "weights")
    command = [emulator, "-cpu", cpu, "-L", SYSROOT, "./run", "arena", "weights"]
    subprocess.run(command, check=True, cwd=folder, timeout=60)
    memory[...] = np.fromfile(folder / "arena", np.float32)
