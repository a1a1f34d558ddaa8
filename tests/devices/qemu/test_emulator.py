"""The emulator's command line and failures, with programs that stand in for qemu; classes of instructions."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgevit.devices.qemu import emulator, packages
from edgevit.devices.qemu.emulator import Counter, Userland, cpuinfo, last_words, parse, run
from edgevit.errors import DeviceError
from edgevit.schema.arm_cpus import ARM_CPUS
from edgevit.schema.measurement import ISA
from tests.absent import unavailable
from tests.devices.board import gone, until


def fake(folder: Path, script: str, plugin: Path | None = None, libraries: Path | None = None) -> Userland:
    """A user land whose qemu is a shell script."""
    program = folder / "qemu-aarch64"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return Userland(
        folder=folder,
        emulator=program,
        emulator_version="qemu-aarch64 0.0.0",
        libraries=libraries,
        python="python3.11",
        plugin=plugin,
        uncounted="" if plugin else "there is no C compiler",
        accountant=folder / "heap,.so",
        unaccounted="",
        runtimes=("onnxruntime",),
        packages={},
    )


def test_known_processors() -> None:
    assert parse("qemu:cortex-a76").sold_as == "Raspberry Pi 5"
    for wrong in ("qemu:", "qemu:max", "qemu:cortex-a76,sve=on", "qemu:cortex-a720"):
        with pytest.raises(DeviceError, match="no emulated device .*known: qemu:cortex-a53"):
            parse(wrong)
    for cpu in ARM_CPUS.values():
        assert not {"sve", "sve2", "sme"} & set(cpu.features), "qemu 7.2 computes SME wrongly"
        assert cpu.qemu != "max"
    assert "asimddp" not in ARM_CPUS["cortex-a72"].features
    assert "asimddp" in ARM_CPUS["cortex-a76"].features and "i8mm" not in ARM_CPUS["cortex-a76"].features
    assert "i8mm" in ARM_CPUS["armv8.6-i8mm"].features
    assert {"asimd", "asimddp", "i8mm"} <= set(ISA)


def test_the_guest_reads_an_arm_processor_first(tmp_path: Path) -> None:
    userland = fake(tmp_path, 'shift 3; cat "$1/proc/cpuinfo"; ls "$1"; readlink "$1/usr"')
    said = run(userland, ARM_CPUS["cortex-a76"], [], folder=tmp_path, timeout_s=10).stdout
    assert said.startswith(cpuinfo(ARM_CPUS["cortex-a76"])) and "CPU part\t: 0xd0b" in said
    assert said.endswith(f"lib\nproc\nusr\n{tmp_path}/root/usr\n")


def test_the_command_and_its_environment(tmp_path: Path) -> None:
    plugin = tmp_path / "a,b.so"
    userland = fake(tmp_path, 'echo "$@"; env', plugin, libraries=tmp_path / "libraries")
    done = run(
        userland,
        ARM_CPUS["armv8.6-i8mm"],
        ["-m", "work"],
        folder=tmp_path,
        paths=(tmp_path / "program",),
        counts=Counter(out=tmp_path / "counts", blocks=tmp_path / "blocks", caches="32768:2", misses=(0, 3)),
        heap=True,
        timeout_s=10,
    )
    command, *environment = done.stdout.splitlines()
    assert command.startswith("-cpu max,sve=off,sme=off -L ")
    files = f"out={tmp_path}/counts,blocks={tmp_path}/blocks,caches=32768:2,misses=0+3"
    assert f"-U LD_LIBRARY_PATH -plugin {tmp_path}/a,,b.so,{files} -E LD_PRELOAD=/" in command
    assert "," not in command.partition("LD_PRELOAD=")[2].split()[0]
    assert command.endswith(f"{tmp_path}/root/usr/bin/python3.11 -X pycache_prefix={tmp_path}/pycache -m work")
    assert f"PYTHONPATH={tmp_path}/site:{tmp_path}/program" in environment
    assert f"LD_LIBRARY_PATH={tmp_path}/libraries" in environment
    assert not any(line.startswith("EDGEVIT") for line in environment)


def test_it_holds_no_more_memory_than_it_is_given(tmp_path: Path) -> None:
    userland = fake(tmp_path, "ulimit -d")
    done = run(userland, ARM_CPUS["cortex-a76"], [], folder=tmp_path, timeout_s=10, memory_bytes=3 << 30)
    assert done.stdout == f"{3 << 20}\n"


def test_failures_are_one_error_each(tmp_path: Path) -> None:
    cpu = ARM_CPUS["cortex-a72"]
    with pytest.raises(DeviceError, match="no instructions can be counted: there is no C compiler"):
        run(fake(tmp_path, "true"), cpu, [], folder=tmp_path, counts=Counter(out=tmp_path), timeout_s=10)
    with pytest.raises(DeviceError, match=r"ended by signal 11 on cortex-a72: bad \?\[2Jthing"):
        run(fake(tmp_path, r"printf 'bad \033[2Jthing\n' >&2; kill -11 $$"), cpu, [], folder=tmp_path, timeout_s=10)
    assert run(fake(tmp_path, "exit 3"), cpu, [], folder=tmp_path, timeout_s=10).returncode == 3


def test_time_is_up_for_all_that_was_started(tmp_path: Path) -> None:
    userland = fake(tmp_path, f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    begin = time.monotonic()
    with pytest.raises(DeviceError, match=r"did not finish within 0.5 s; .* --timeout"):
        run(userland, ARM_CPUS["cortex-a72"], [], folder=tmp_path, timeout_s=0.5)
    assert time.monotonic() - begin < 30
    child = Path("/proc") / (tmp_path / "pid").read_text().strip() / "stat"
    for _ in range(100):
        if not child.exists() or child.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("what the emulator started still runs")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_emulator_ends_with_whoever_started_it(tmp_path: Path, number: signal.Signals) -> None:
    fake(tmp_path, f"echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 600")
    program = (
        "import dataclasses; from tests.devices.qemu.test_emulator import *; from edgevit.cli import _cleaning_up\n"
        f"here = Path({str(tmp_path)!r})\n"
        "userland = fake(here / 'none', 'true')\n"
        "userland = dataclasses.replace(userland, emulator=here / 'qemu-aarch64')\n"
        "with _cleaning_up(): run(userland, ARM_CPUS['cortex-a72'], [], folder=here, timeout_s=600)"
    )
    (tmp_path / "none").mkdir()
    (tmp_path / "temporary").mkdir()
    asking = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        stderr=subprocess.DEVNULL,
    )
    until((tmp_path / "pid").exists, "the emulator does not start", patience_s=60)
    emulating = int((tmp_path / "pid").read_text())
    asking.send_signal(number)
    assert asking.wait(60) == (143 if number == signal.SIGTERM else -number)
    until(lambda: gone(emulating), "the emulator still runs")
    assert bool(list((tmp_path / "temporary").iterdir())) is (number == signal.SIGKILL)


def test_last_words() -> None:
    assert last_words("") == "it said nothing"
    assert last_words("one\ntwo\x1b[2J\n\n") == "two?[2J"
    assert len(last_words("x" * 5000)) == emulator.LAST_WORDS


# Encodings by GNU as 2.40 for -march=armv8.6-a+fp16+fp16fml, an instruction of each form that is told apart.
INSTRUCTIONS = {
    "multiply_add": """
        4e22cc20 4e62cc20 4ea2cc20 4fa21020 4fa25820 4fc21820 4e420c20 4ec20c20 4f321820
    """,
    "dot": "4e829420 6e829420 4e829c20 4fa2e020 2fa2e820 4fa2f020 4f22f820",
    "matrix": "4e82a420 6e82a420 4e82ac20 6e42ec20",
    "widening": "0e628020 4e628020 2e228020 6f722020 0e62a020 0e22c020 6e22c020 0f52a020 2f526020",
    "load": """
        3dc00020 f9400420 bc626820 b9800020 38401420 3cdf0020 ad400440 a8c10440 ac400440 4c402800 4d40c800 0ddf9000
        c85f7c20 88dffc20 58000080 b8200041 b8208041
    """,
    "store": "3d800020 f8226820 38001420 3c9f0020 ad000440 a9bf07e0 4c002800 0d009000 889ffc20",
    "branch": "14000002 94000002 b4000040 36080040 54000041 d65f03c0 d61f0000 d4000001",
    # fmadd, fnmsub, add, madd, smull, mul, mla, mla and mul by element, fmul twice, fadd, fmax, sqdmlal, sqdmull,
    # saddw, sadalp, saddl, shl, fcvtzs, dup, tbl, zip1, movi, scvtf, fmlal, bfdot, pmull, uabal, fcmla, sqrdmulh
    "other": """
        1f020c20 1f628c20 8b020020 9b020c20 9b227c20 4ea29c20 4ea29420 6fa20020 4fa28020 4fa29020 6e22dc20 4e22d420
        4e22f420 0e629020 0e62d020 0e221020 4e606820 0e220020 4f235420 4ea1b820 4e040420 4e020020 4e823820 4f000400
        4e21d820 4e22ec20 6e42fc20 0e22e020 2e225020 6e82cc20 4fa2d020
    """,
}


def test_classes_of_instructions(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        message = "no C compiler: sudo apt-get install gcc libc6-dev"
        unavailable(message)
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "a64.h"\n'
        'int main(void) { unsigned op; while (scanf("%x", &op) == 1) puts(a64_names[a64_classify(op)]); }\n'
    )
    subprocess.run(
        [compiler, "-Wall", "-Werror", f"-I{packages.HERE}", tmp_path / "main.c", "-o", tmp_path / "main"], check=True
    )
    for name, words in INSTRUCTIONS.items():
        said = subprocess.run([tmp_path / "main"], input=words, capture_output=True, text=True, check=True).stdout
        assert said.split() == [name] * len(words.split()), name
