"""Setting a user land up, with programs that stand in for apt-get, dpkg-deb, pip and qemu: whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgevit.devices.qemu import packages, userland
from edgevit.errors import DeviceError, OutputError
from edgevit.util.strays import stray_name
from tests.absent import unavailable
from tests.devices.standins import APT_GET, DPKG_DEB, QEMU, make, write


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins that is all of PATH but the shell's own tools."""
    folder = tmp_path / "tools"
    make(folder)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("HERE", str(folder))
    monkeypatch.setenv("EDGEVIT_DEVICES", str(tmp_path / "devices"))
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setattr(shutil, "which", lambda name: str(folder / name) if (folder / name).exists() else None)
    return folder


def assert_nothing_but(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted((".lock", *names))


def test_set_up_and_remove(tools: Path, tmp_path: Path) -> None:
    said: list[str] = []
    made = userland.setup(say=said.append)
    assert said[0] == "Looking for qemu" and said[-1] == "Trying it on armv8.6-i8mm"
    assert made.folder == tmp_path / "devices/qemu" and made.emulator.is_file()
    assert made.emulator_version == "qemu-aarch64 7.2.22"
    assert made.plugin is not None and not made.uncounted
    assert made.accountant == made.folder / "heap.so" and not made.unaccounted
    assert made.runtimes == ("onnxruntime",)
    assert made.packages["numpy"] == "2.4.6" and made.packages["libc6"] == "1.0"
    record = json.loads((made.folder / "device.json").read_text())
    assert all(len(digest) == 64 for digest in record["sha256"].values())
    assert record["sha256"].keys() == record["packages"].keys()
    assert userland.installed() == made
    assert_nothing_but(tmp_path / "devices", "qemu")
    assert userland.remove() and not userland.remove()
    assert_nothing_but(tmp_path / "devices")


def test_what_is_not_a_device_is_neither_replaced_nor_removed(tools: Path, tmp_path: Path) -> None:
    mine = tmp_path / "devices" / "qemu"
    mine.mkdir(parents=True)
    (mine / "disk.img").write_text("dear")
    for change in (userland.setup, userland.remove):
        with pytest.raises(OutputError, match=r"not an emulated device and nothing else \(in the way: disk\.img\)"):
            change()
    assert (mine / "disk.img").read_text() == "dear"
    mine.rename(tmp_path / "kept")
    left = tmp_path / "devices" / stray_name("qemu", process=1)  # of one that was killed
    left.mkdir()
    (tmp_path / "devices" / ".qemu.conf").write_text("dear")
    userland.setup()
    (mine / "disk.img").write_text("dear")
    with pytest.raises(OutputError, match="in the way: disk.img"):
        userland.remove()
    (mine / "disk.img").unlink()
    assert userland.remove()
    assert_nothing_but(tmp_path / "devices", ".qemu.conf")


def test_setting_up_again_keeps_the_runtimes(tools: Path) -> None:
    userland.setup(["openvino"])
    assert userland.setup(["onnxruntime"]).runtimes == ("onnxruntime", "openvino")
    assert (userland.installed().site / "openvino-telemetry/__init__.py").is_file()


@pytest.mark.parametrize(
    ("tool", "script", "message"),
    [
        ("apt-cache", "echo nothing", "apt-get knows no arm64 packages here .W: nothing new"),
        ("apt-cache", "exit 100", "check the network"),
        ("apt-get", f'case "$*" in *libc6*) echo "E: cannot reach" >&2; exit 100;; esac\n{APT_GET}', "E: cannot reach"),
        ("dpkg-deb", f'if [ "$1" = -x ]; then echo "E: damaged" >&2; exit 2; fi\n{DPKG_DEB}', "cannot be unpacked"),
        ("python", "echo 'ERROR: No matching distribution' >&2; exit 1", "pip cannot fetch the aarch64 wheels"),
        ("qemu", f'case "$*" in *-c*) echo "bad ELF" >&2; exit 1;; esac\n{QEMU}', "does not run on the emulated"),
        ("qemu", "exit 1", "does not run here; run: sudo apt-get install qemu-user"),
    ],
)
def test_what_fails_changes_nothing(tools: Path, tmp_path: Path, tool: str, script: str, message: str) -> None:
    made = userland.setup()
    write(tools / tool, script)
    with pytest.raises(DeviceError, match=message):
        userland.setup()
    assert userland.installed() == made
    assert_nothing_but(tmp_path / "devices", "qemu")


def test_a_machine_without_the_tools(tools: Path) -> None:
    (tools / "apt-get").unlink()
    with pytest.raises(DeviceError, match="takes apt-get, which this machine does not have; it needs a Debian-like"):
        userland.setup()


def test_a_qemu_that_is_here_is_taken(tools: Path) -> None:
    write(tools / "qemu-aarch64", QEMU)
    made = userland.setup()
    assert made.emulator == tools / "qemu-aarch64" and made.libraries is None
    assert "qemu-user" not in made.packages


def test_without_plugins_or_a_compiler_nothing_is_counted_and_the_reason_is_kept(tools: Path) -> None:
    write(tools / "qemu", QEMU.replace('echo "-plugin"', 'echo "-cpu"'))
    write(tools / "qemu-aarch64-static", QEMU.replace('echo "-plugin"', 'echo "-cpu"'))
    made = userland.setup()
    assert made.emulator.name == "qemu-aarch64-static"
    assert made.plugin is None and "takes no plugins" in made.uncounted
    write(tools / "qemu", QEMU)
    (tools / "cc").unlink()
    assert "there is no C compiler" in userland.setup().uncounted
    write(tools / "cc", "echo 'stdio.h: no such file' >&2; exit 1")
    assert "the C compiler failed: stdio.h: no such file" in userland.setup().uncounted
    write(tools / "cc", 'while [ "$1" != -o ]; do shift; done; echo plugin > "$2"')
    write(tools / "qemu", QEMU.replace("1 2", "0 0"))
    made = userland.setup()
    assert made.plugin is None and made.uncounted == "the counter counted nothing"
    assert userland.installed() == made
    (tools / "aarch64-linux-gnu-gcc").unlink()
    made = userland.setup()
    assert made.accountant is None and "sudo apt-get install gcc-aarch64-linux-gnu" in made.unaccounted


@pytest.mark.parametrize(
    ("release", "api"),
    [("7.2.22", 1), ("8.2.0", 1), ("9.0.1", 2), ("9.1.0", 3), ("10.0.2", 4), ("10.2.1", 6), ("11.0.0", None)],
)
def test_the_counter_is_made_for_the_qemu_that_loads_it(release: str, api: int | None) -> None:
    """Versions as qemu's header tells them: plugins/qemu-plugin.h of its releases."""
    assert packages.plugin_api(f"qemu-aarch64 {release}") == api


@pytest.mark.parametrize(
    ("compiler", "source", "options"),
    [
        *(("cc", "count.c", [f"-DPLUGIN_API={api}"]) for api in range(1, 7)),
        ("aarch64-linux-gnu-gcc", "heap.c", ["-nostdlib", "-fno-builtin"]),
    ],
)
def test_what_is_compiled_on_the_users_machine_gives_no_warnings(
    compiler: str, source: str, options: list[str], tmp_path: Path
) -> None:
    found = shutil.which(compiler)
    if found is None:
        message = f"no {compiler}: sudo apt-get install gcc libc6-dev gcc-aarch64-linux-gnu"
        unavailable(message)
    strict = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", *options]
    subprocess.run([found, *strict, packages.HERE / source, "-o", tmp_path / "it.so"], check=True)


def test_one_made_by_another_edgevit_is_refused(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="is not set up; run: edgevit device setup qemu"):
        userland.installed()
    userland.setup()
    monkeypatch.setattr(packages, "digest", lambda: "0" * 64)
    with pytest.raises(DeviceError, match="made by another version of edgevit"):
        userland.installed()
    (userland.devices_folder() / userland.NAME / userland.RECORD).write_text("[" * 100_000)
    with pytest.raises(DeviceError, match="made by another version of edgevit"):
        userland.installed()


@pytest.mark.parametrize("kind", ["file", "link", "pipe"])
def test_what_is_called_like_the_lock_is_not_emptied(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices, mine = tmp_path / "devices", tmp_path / "mine"
    monkeypatch.setenv("EDGEVIT_DEVICES", str(devices))
    devices.mkdir()
    mine.write_text("dear")
    lock = devices / ".lock"
    if kind == "pipe":
        os.mkfifo(lock)
        assert not userland.remove()
    elif kind == "link":
        lock.symlink_to(mine)
        with pytest.raises(DeviceError, match="cannot be written"):
            userland.remove()
    else:
        lock.write_text("dear")
        assert not userland.remove() and lock.read_text() == "dear"
    assert mine.read_text() == "dear"


def test_one_edgevit_at_a_time(tools: Path) -> None:
    with userland._locked(), pytest.raises(DeviceError, match="another edgevit is changing the devices"):
        userland.setup()


def test_what_a_killed_edgevit_left_is_swept(tools: Path, tmp_path: Path) -> None:
    (tmp_path / "devices" / stray_name("qemu", process=1) / "qemu").mkdir(parents=True)
    userland.setup()
    assert_nothing_but(tmp_path / "devices", "qemu")


def test_the_pins_are_hashes_of_aarch64_wheels() -> None:
    lines = [line for line in packages.WHEELS.read_text().splitlines() if line and not line.startswith("#")]
    pinned = {line.split("==")[0]: line.count("--hash=sha256:") for line in lines}
    assert pinned.keys() == {*userland.COMMON, *(name for names in userland.RUNTIMES.values() for name in names)}
    assert all(count in (1, 3) for count in pinned.values())


def test_an_unknown_runtime(tools: Path) -> None:
    with pytest.raises(DeviceError, match="no aarch64 runtime tflite; known: onnxruntime, openvino"):
        userland.setup(["tflite"])
