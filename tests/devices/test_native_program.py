"""`edgevit profile TVM-BUNDLE --device ssh://...`: measured by the bundle's own C++ runner, without Python there."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgevit import pipeline
from edgevit.bundle.read import open_bundle
from edgevit.cli import main
from edgevit.devices import native_program
from edgevit.devices.board_environment import _root, environment_of, glibc, needed_glibc, require_fit
from edgevit.devices.confined import allowance
from edgevit.devices.machine import StepResult, find
from edgevit.devices.profile import profile
from edgevit.devices.qemu.emulator import Userland
from edgevit.devices.request import ProfileRequest
from edgevit.devices.ssh import board as board_module
from edgevit.devices.ssh import session
from edgevit.devices.ssh.board import Board as SshBoard
from edgevit.devices.ssh.connection import Address
from edgevit.errors import BundleError, DeviceError, RuntimeMissingError
from edgevit.measure.warnings import measurement_warnings
from edgevit.schema.measurement import ImagesUsed
from edgevit.schema.measurement_file import read_measurement
from edgevit.schema.target import load_target
from tests.absent import unavailable
from tests.backends.tvm.available import import_or_skip
from tests.building import RECIPE, image_set
from tests.bundles import rehash, rewrite, sample_bundle
from tests.devices import land
from tests.devices.board import Board
from tests.devices.conftest import board, running, use  # noqa: F401 (fixtures)
from tests.devices.fakes import FakeSession
from tests.tiny import tiny_images, tiny_program, tiny_spec

import_or_skip()
pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="written for x86-64, with aarch64 emulated")
PROGRAM = tiny_program(gated=True, skip=True, depth=2)


def build(folder: Path, target: str) -> Path:
    try:
        return pipeline.build(PROGRAM, load_target(target), image_set(PROGRAM), folder, recipe=RECIPE).folder
    except RuntimeMissingError as error:
        unavailable(str(error))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A name that a shell would take to pieces.
    return build(tmp_path_factory.mktemp("bundle") / 'it\'s a "tiny" $(touch pwned); one', "x86-64-v3-tvm")


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("arm") / "bundle", "cortex-a72-tvm")


def with_runner(bundle: Path, folder: Path, content: bytes) -> Path:
    """A copy of a bundle with another program as its runner."""
    shutil.copytree(bundle, folder)
    (folder / "runner/native/runner").write_bytes(content)
    rehash(folder)
    return folder


def test_profile_on_a_board(bundle: Path, board: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    photos = tmp_path / "photos"
    photos.mkdir()
    for index, image in enumerate(tiny_images(tiny_spec(), 3, seed=1)):
        Image.fromarray(image).save(photos / f"{index}.png")
    out = tmp_path / "board.json"
    asked = ["--device", board.url, "--images", str(photos), "--runs", "8", "--cpus", "0", "-o", str(out)]
    # A board without any Python.
    assert main(["profile", str(bundle), *asked, "--python", "none-here"]) == 0
    captured = capsys.readouterr()
    assert "1 thread, pinned to CPUs 0" in captured.out and "all_skipped" in captured.out
    assert "golden outputs: reproduced" in captured.out
    assert not list(board.folder.rglob("pwned"))
    measured = read_measurement(out)
    with open_bundle(bundle) as opened:
        assert measured.bundle_sha256 == opened.sha256
        bound = opened.manifest.bound
    machine = measured.environment
    assert measured.device == "ssh" and machine.cpus == (0,) and machine.emulated_by is None
    assert machine.cores >= 1 and machine.load_average_before is not None and "avx2" in machine.isa
    assert (measured.images.count, measured.images.timed, measured.images.golden) == (3, 2, False)
    assert [p.path for p in measured.paths] == ["all_open", "all_skipped", "real"]
    assert [p.branches_open for p in measured.paths][:2] == [4, 0]
    assert all(p.wall.runs == p.cpu.runs == 8 for p in measured.paths)
    assert all(case.held and case.logit_error == 0 for case in measured.golden) and len(measured.golden) == 3
    assert all((b.open_time_ms or 0) > (b.skipped_time_ms or 0) > 0 for b in measured.branches)
    assert all(round(b.open_rate * 3, 6).is_integer() for b in measured.branches)
    process, memory = measured.process, measured.memory
    assert process is not None and 0 < process.imported_bytes <= process.loaded_bytes <= process.peak_bytes
    assert memory is not None and memory.of == "runtime" and 0 < memory.peak_bytes <= bound.arena_bytes
    assert captured.err.count("warning: ") == len(measured.warnings)
    assert main(["report", str(bundle), str(out)]) == 0


def refusal(bundle: Path, board: Board, **asked: Any) -> str:  # noqa: F811
    with pytest.raises(DeviceError) as caught:
        profile(bundle, None, find(board.url), runs=2, **asked)
    return str(caught.value)


def test_a_board_is_told_how_many_threads_a_run_has(bundle: Path) -> None:
    """Also where it is the target's number: a board with fewer CPUs must refuse, not run with fewer in silence."""
    with open_bundle(bundle) as opened:
        manifest = dataclasses.replace(opened.manifest, target=dataclasses.replace(opened.manifest.target, threads=2))
        for threads in (2, 1):
            request = ProfileRequest(
                bundle=dataclasses.replace(opened, manifest=manifest),
                images=tiny_images(PROGRAM.spec, 1),
                used=ImagesUsed(count=1, digest="0", golden=True),
                runs=1,
            )
            case = native_program._Case(request=request, threads=threads)
            for step in native_program._steps(case, ["golden", "timed"]):
                assert step.arguments[step.arguments.index("--threads") + 1] == str(threads)
                assert step.memory_bytes == allowance(manifest, seconds=1, threads=threads).memory_bytes


def test_what_the_board_cannot_do_is_one_message(bundle: Path, arm: Path, board: Board, tmp_path: Path) -> None:  # noqa: F811
    assert "is x86_64, the bundle's target aarch64; build the bundle for a target" in refusal(arm, board)
    assert "CPUs 4000 were asked for; 127.0.0.1 offers 0" in refusal(bundle, board, cpus=(4000,))
    assert "compiled for 1 thread, got --threads 3" in refusal(bundle, board, threads=3)
    with open_bundle(bundle) as opened:
        elsewhere = dataclasses.replace(
            opened.manifest, target=dataclasses.replace(opened.manifest.target, arch="riscv64")
        )
        with pytest.raises(DeviceError, match="is aarch64, the bundle's target riscv64"):
            require_fit(dataclasses.replace(opened, manifest=elsewhere), MACHINE, "board", None)
        with pytest.raises(BundleError, match="cannot read .*model.json"):
            request = ProfileRequest(
                bundle=dataclasses.replace(opened, folder=tmp_path),
                images=tiny_images(tiny_spec(), 1),
                used=ImagesUsed(count=1, digest="0", golden=True),
            )
            native_program.measure(SshBoard(address=Address(host="board")), request)
    runner = (bundle / "runner/native/runner").read_bytes()
    absent = with_runner(bundle, tmp_path / "absent", runner.replace(b"libgcc_s.so.1\0", b"libgcc_s.so.9\0"))
    assert "lacks libgcc_s.so.9, which the bundle's runner loads; install it there" in refusal(absent, board)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'error: bad \x1b[2Jthing' >&2; exit 19", "could not run the bundle: bad [2Jthing"),
        ("exit 3", "could not run the bundle: exit code 3"),
        ("kill -ILL $$", "met an instruction that its CPU does not have"),
        ("kill -9 $$", "was ended on 127.0.0.1, possibly out of memory"),
        ("echo '{}'; echo '[]'", "gave an answer that cannot be read"),
        ("echo '{}'; echo '{\"gates\": [NaN]}'", "gave an answer that cannot be read: NaN is no number"),
        ("true", "gave an answer that cannot be read"),
        ("exec sleep 600", "did not finish within 1 s; allow more with --timeout"),
    ],
)
def test_what_a_runner_says_is_not_trusted(bundle: Path, board: Board, tmp_path: Path, script: str, said: str) -> None:  # noqa: F811
    broken = with_runner(bundle, tmp_path / "broken", f"#!/bin/sh\n{script}\n".encode())
    assert said in refusal(broken, board, timeout_s=1 if "sleep" in script else 60)


# ---- What a board tells of itself ----

MACHINE = {"machine": "aarch64\n", "libc": "glibc 2.36\n", "bits": "64\n", "/proc/cpuinfo": "Features\t: fp asimd\n"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"machine": "armv7l\n"}, "board is armv7l, the bundle's target aarch64"),
        ({"machine": "x86_64\n"}, "board is x86_64, the bundle's target aarch64"),
        ({"bits": "32\n"}, r"64-bit kernel \(aarch64\) but 32-bit programs"),
        ({"libc": "glibc 2.31\n"}, r"board has glibc 2.31, the bundle's runner needs 2\.3\d or newer"),
        ({"libc": "ldd (Debian GLIBC 2.19-18+deb8u10) 2.19\n"}, "board has glibc 2.19"),
        ({"libc": "musl libc (aarch64)\nVersion 1.2.4\n"}, "board has musl as its C library"),
        ({"/proc/cpuinfo": "Features\t: fp\n"}, "CPU of board lacks asimd, which the bundle's code for cortex-a72"),
    ],
)
def test_a_board_that_does_not_fit_is_refused_before_anything_is_copied(
    arm: Path, changes: dict[str, str], said: str
) -> None:
    with open_bundle(arm) as opened:
        require_fit(opened, MACHINE, "board", None)
        require_fit(opened, MACHINE | {"libc": "", "bits": "", "/proc/cpuinfo": ""}, "board", (0,))
        with pytest.raises(DeviceError, match=said):
            require_fit(opened, MACHINE | changes, "board", None)


def test_what_spoils_the_figures_of_a_board_is_read_from_its_files(arm: Path) -> None:
    cpu, thermal = "/sys/devices/system/cpu/cpu0/cpufreq", "/sys/class/thermal"
    told = MACHINE | {
        "kernel": "Linux 6.6.31+rpt-rpi-v8\n",
        "emulator": "/usr/bin/readlink\n",
        "/proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd08\n\nprocessor\t: 1\n",
        "/proc/meminfo": "MemTotal:        3884412 kB\n",
        "/etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12"\n',
        "/sys/firmware/devicetree/base/model": "Raspberry Pi 4 Model B Rev 1.4\0\n",
        f"{cpu}/scaling_governor": "ondemand\n",
        f"{thermal}/cooling_device0/type": "cpufreq-cpu0\n",
    }
    before = {"/proc/loadavg": "2.5 1 1 1/100 5\n", f"{cpu}/scaling_cur_freq": "1500000\n"}
    after = {
        f"{cpu}/scaling_cur_freq": "600000\n",
        f"{thermal}/thermal_zone0/temp": "84200\n",
        f"{thermal}/cooling_device0/cur_state": "2\n",
        "/sys/devices/platform/soc/soc:firmware/get_throttled": "throttled=0x50005\n",
    }
    with open_bundle(arm) as opened:
        machine = environment_of(opened, told, before, after, threads=1, cpus=(1,), emulated=False)
    assert (machine.cpu, machine.arch, machine.cores) == ("Raspberry Pi 4 Model B Rev 1.4", "aarch64", 2)
    assert machine.system == "Debian GNU/Linux 12, Linux 6.6.31+rpt-rpi-v8" and machine.isa == ("asimd",)
    assert (machine.cpu_part, machine.cpus, machine.governor) == ("0xd08", (1,), "ondemand")
    assert (machine.frequency_before_mhz, machine.frequency_after_mhz) == (1500, 600)
    assert (machine.temperature_before_c, machine.temperature_after_c) == (None, 84.2)
    assert machine.memory_total_bytes == 3884412 * 1024 and machine.emulated_by is None
    spoilt = " ".join(measurement_warnings(machine))
    for reason in (
        "firmware: under-voltage, firmware: throttled, cpufreq-cpu0 at state 2",
        "the clock fell from 1500 to 600 MHz",
        "84.2 °C",
        "governor is ondemand",
        "load average 2.5",
    ):
        assert reason in spoilt


def test_files_of_a_board_stay_where_they_are_put(tmp_path: Path) -> None:
    names = ("/proc/../../out", "/etc/../x", "/home/x", "/proc", "proc/x", "/proc/" + "x" * 300)
    told = dict.fromkeys((*names, "/proc/thread-self", "/proc/thread-self/exe", "/proc/./thread-self/exe"), "?")
    told |= {"/proc/cpuinfo": "Features\t: asimd\n", "/proc/cpuinfo/more": "?", "emulator": "/usr/bin/qemu-\x1b../x"}
    for _ in range(2):
        root = _root(told, tmp_path / "root")
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.is_dir())
    assert found == ["root/proc/cpuinfo", "root/proc/thread-self/exe"]
    assert str((root / "proc/thread-self/exe").readlink()) == "/x"


def test_versions_of_glibc(arm: Path) -> None:
    assert glibc("ldd (Ubuntu GLIBC 2.35-0ubuntu3.8) 2.35\nCopyright") == (2, 35)
    assert glibc("ldd (GNU libc) 2.40") == (2, 40)
    assert glibc("sh: ldd: not found") is None and glibc("") is None
    with open_bundle(arm) as bundle:
        assert (2, 17) < needed_glibc(bundle) < (3, 0)


# ---- A board that is emulated ----


@pytest.fixture(scope="module")
def emulated(device: Userland) -> Iterator[tuple[Board, Path]]:
    """An sshd whose logins land in an emulated aarch64 system, and that system's folder."""
    land.need()
    # pytest's own folders may not be entered by the user that sshd acts for.
    folder = Path(tempfile.mkdtemp(prefix="board-"))
    board = Board(folder / "board", login=lambda tmp: land.make(folder / "land", device, tmp))  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        use(board.client(folder / "client"), patch)
        yield board, folder / "land"
    board.stop()
    shutil.rmtree(folder)


def test_times_of_an_emulated_board_are_withheld(emulated: tuple[Board, Path], arm: Path, tmp_path: Path) -> None:
    there, _ = emulated
    out = tmp_path / "out.json"
    assert main(["profile", str(arm), "--device", there.url, "--runs", "4", "-o", str(out)]) == 0
    measured = read_measurement(out)
    machine = measured.environment
    assert machine.emulated_by == "qemu-aarch64-static" and (machine.arch, machine.cpu) == ("aarch64", "cortex-a72")
    assert (measured.paths, measured.expected_wall_ms, measured.load_ms, measured.process) == ((), None, None, None)
    assert "times are withheld" in measured.warnings[0]
    assert all(case.held for case in measured.golden) and len(measured.golden) == 3
    assert {branch.time_source for branch in measured.branches} == {"withheld"}
    there.assert_clean()


def test_a_python_agent_on_an_emulated_board_withholds_times_too(emulated: tuple[Board, Path], tmp_path: Path) -> None:
    there, _ = emulated
    bundle = sample_bundle(tmp_path / "bundle")
    data = json.loads((bundle / "manifest.json").read_text())
    data["target"]["arch"] = "aarch64"
    rewrite(bundle, data)
    measured = profile(bundle, None, find(there.url, python="python3.11"), runs=2)
    assert measured.environment.emulated_by == "qemu-aarch64-static" and measured.paths == ()
    assert "times are withheld" in measured.warnings[0] and (measured.process, measured.memory) == (None, None)
    there.assert_clean()


def test_an_emulated_board_refuses_like_a_real_one(
    emulated: tuple[Board, Path], arm: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, system = emulated
    assert "is aarch64, the bundle's target x86_64" in refusal(bundle, there)
    with land.changed(system / "bin/getconf", "glibc 2.36", "glibc 2.17"):
        assert "has glibc 2.17, the bundle's runner needs" in refusal(arm, there)
    with land.changed(system / "cpuinfo", "asimd ", ""):
        assert "lacks asimd" in refusal(arm, there)
    monkeypatch.setattr(session, "RESERVE_BYTES", 1 << 60)
    assert "bytes are free, needed: " in refusal(arm, there)
    there.assert_clean()


def test_the_runners_own_word_of_an_emulator_is_enough(arm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board that does not show its emulator, but whose runner does."""
    with open_bundle(arm) as opened:
        manifest = opened.manifest
    line = {"gates": [1] * len(manifest.branches), "top": [[0, 1.0]], "emulated": True}
    lines = [json.dumps(each) for each in ({}, line, line, line, *[line] * 400)]
    answers = {
        step: StepResult(status=0, out="\n".join(lines[:4] if step == "golden" else lines), err="")
        for step in ("golden", "timed", "traced")
    }
    monkeypatch.setattr(board_module, "connected", lambda *_, **__: nullcontext(FakeSession(MACHINE, answers)))
    measured = profile(arm, None, find("ssh://board"), runs=2)
    assert measured.paths == () and measured.environment.emulated_by == "an emulator"
    assert any("golden path" in warning for warning in measured.warnings)
    assert dataclasses.replace(measured.golden[0], gates_equal=True, logit_error=0.0).held
