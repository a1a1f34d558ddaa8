"""Threads of a C library that wait for each other."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from tests.backends.tvm.available import import_or_skip

import_or_skip()

from edgevit.backends.tvm.compile.clib.source import POOL, TEMPLATES  # noqa: E402
from tests.backends.tvm.compile.clib.programs import compiler  # noqa: E402

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="counts an instruction of x86-64")
WAITING = r"""
static int pauses, yields;
static void yielded(void);
#define __builtin_ia32_pause() (++pauses)
%s
#include <stdint.h>
#include <stdio.h>
#define sched_yield() (yielded(), 0)
typedef struct { pool group; } model_state;
enum { MODEL_OK, MODEL_NULL, MODEL_THREADS, MODEL_MOST_THREADS = 8 };
int model_start(model_state *model, int threads);
#include "pool.c"
static model_state model;
/* The CPU was given up: now the other thread does what is waited for. */
static void yielded(void) { ++yields, ++model.group.passed, ++model.group.turn, model.group.busy = 0; }
static int work(int index, team *group, void *data) { return (void)index, (void)group, (void)data, 0; }
int main(void) {
  pool *group = &model.group;
  team together = {group, 2};
  running = &model;
  group->threads = 2;
  barrier(0, &together), printf("%%d %%d ", pauses, yields), pauses = yields = 0;
  launch(work, NULL, 0), printf("%%d %%d ", pauses, yields), pauses = yields = 0;
  next_work(group, group->turn), printf("%%d %%d", pauses, yields);
  return worker == NULL;
}
"""


def test_a_thread_that_waits_gives_up_its_cpu_soon(tmp_path: Path) -> None:
    """Else two threads on one CPU, as beside other work, would wait for each other a millisecond at a time."""
    text = WAITING % POOL.replace("@MOST@", "7")
    source, program = tmp_path / "main.c", tmp_path / "main"
    source.write_text(text, encoding="utf-8")
    command: list[str | Path] = [compiler().cc, "-std=gnu99", "-pthread", "-I", TEMPLATES, source, "-o", program]
    subprocess.run(command, check=True)
    told = subprocess.run([program], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert [int(pauses) < 100 for pauses in told[::2]] == [True] * 3 and told[1::2] == ["1"] * 3


WAKING = r"""
%s
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
typedef struct { pool group; } model_state;
enum { MODEL_OK, MODEL_NULL, MODEL_THREADS, MODEL_MOST_THREADS = 8 };
int model_start(model_state *model, int threads);
#include "pool.c"
static model_state model;
static long done[2];
static int work(int index, team *group, void *data) {
  for (volatile int i = rand() %% 4000; i > 0;) --i;
  ++done[index];
  return barrier(index, group), (void)data, 0;
}
int main(void) {
  running = &model;
  model.group.threads = 1;
  if (model_start(&model, 2)) return 1;
  for (int i = 0; i < 3000; ++i)
    if (launch(work, NULL, 0)) return 2;
  if (model_start(&model, 1)) return 3;
  printf("%%ld %%ld %%d", done[0], done[1], model.group.asleep);
  return 0;
}
"""


def test_a_thread_that_falls_asleep_as_it_is_given_work_is_woken(tmp_path: Path) -> None:
    """It sleeps after a few looks here, so that it often does so in that very moment."""
    text = WAKING % POOL.replace("@MOST@", "7").replace("SPINS = 30000", "SPINS = 3")
    source, program = tmp_path / "main.c", tmp_path / "main"
    source.write_text(text, encoding="utf-8")
    command: list[str | Path] = [compiler().cc, "-std=gnu99", "-O1", "-pthread", "-I", TEMPLATES, source, "-o", program]
    subprocess.run(command, check=True)
    told = subprocess.run([program], capture_output=True, text=True, check=True, timeout=120).stdout.split()
    assert told == ["3000", "3000", "0"]
