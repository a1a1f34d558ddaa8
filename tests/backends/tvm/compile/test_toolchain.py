"""Compilers by name, C library and folder: found, or one error that says what to install."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edgevit.backends import tvm
from edgevit.backends.tvm.compile.toolchain import Toolchain, toolchain
from edgevit.errors import OutputError, RuntimeMissingError, TargetError
from edgevit.schema.target import load_target
from tests.absent import unavailable


def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.mark.parametrize(
    ("arch", "libc", "told"),
    [
        ("x86_64", None, "gcc is not installed, and compiles C for x86_64 with glibc; on Debian: apt install gcc$"),
        ("x86_64", "glibc-2.17", "gcc is not installed"),
        ("x86_64", "musl", "musl-gcc is not installed, .* with musl; on Debian: apt install musl-tools"),
        ("aarch64", None, "aarch64-linux-gnu-gcc is not installed, .*: apt install gcc-aarch64-linux-gnu"),
        ("aarch64", "musl", "aarch64-linux-musl-gcc is not installed, .* with musl; install: a cross compiler"),
        (
            "aarch64",
            "bionic",
            "aarch64-linux-android24-clang is not installed, .*install: Android's NDK, .*ANDROID_NDK_HOME",
        ),
    ],
)
def test_a_missing_compiler_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, arch: str, libc: str | None, told: str
) -> None:
    nothing_installed(monkeypatch)
    with pytest.raises(RuntimeMissingError, match=told):
        toolchain(arch, libc=libc)


def test_a_compiler_or_a_folder_that_a_target_names_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeMissingError, match="no-such-gcc is not installed.*the package that has no-such-gcc"):
        toolchain("aarch64", cc="no-such-gcc")
    (tmp_path / "file").touch()
    for place in ("absent", "file"):
        with pytest.raises(RuntimeMissingError, match=rf"sysroot .*{place} is not a folder; copy the device's"):
            toolchain("x86_64", sysroot=str(tmp_path / place))


@pytest.mark.parametrize("place", ["ANDROID_NDK_HOME", "ANDROID_NDK_ROOT"])
def test_the_ndk_is_found_where_it_is_installed_and_its_own_tools_are_used(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that has an NDK's layout and writes down how it is called; no code of Android's is compiled."""
    programs = tmp_path / "toolchains/llvm/prebuilt/linux-x86_64/bin"
    programs.mkdir(parents=True)
    compiler, asked = programs / "aarch64-linux-android24-clang", tmp_path / "asked"
    compiler.write_text(
        f'#!/bin/sh\ncase "$1" in\n-print-prog-name=llvm-*) echo "{programs}/${{1#*=}}";;\n'
        f'-print-prog-name=*) echo "${{1#*=}}";;\n*) echo "$@" > {asked};;\nesac\n'
    )
    for name in ("llvm-ar", "llvm-nm", "llvm-objcopy"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
    for path in programs.iterdir():
        path.chmod(0o755)
    for each in ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(place, str(tmp_path))
    tools = toolchain("aarch64", libc="bionic", sysroot=str(tmp_path))
    assert tools.cc == str(compiler) and tools.newest_glibc is None
    tools.run("-c", "model.c", "-o", "model.o")
    assert asked.read_text() == f"--sysroot={tmp_path} -c model.c -o model.o\n"
    assert tools.tool("objcopy", "a.o") == "llvm-objcopy a.o\n"
    target = replace(load_target("cortex-a72-tvm"), libc="bionic", sysroot=str(tmp_path))
    assert tvm.tools_of(target).cc == str(compiler)


@pytest.mark.parametrize("libc", ["", "uclibc", "glibc-2", "glibc 2.17", "musl-1.2", "GLIBC"])
def test_a_c_library_that_is_not_known_is_refused(libc: str) -> None:
    target = replace(load_target("cortex-a72-tvm"), libc=libc)
    assert any("libc: got" in fault and "musl, bionic" in fault for fault in tvm.refused(target))
    if libc:
        with pytest.raises(TargetError, match="libc: got"):
            toolchain("x86_64", libc=libc)


@pytest.mark.parametrize("arch", ["armv7m", "cortex-m7", "riscv64"])
def test_microcontrollers_are_said_to_be_out_of_scope(arch: str) -> None:
    target = replace(load_target("cortex-a72-tvm"), arch=arch)
    assert any("Cortex-M and the like) are not supported" in fault for fault in tvm.refused(target))
    with pytest.raises(TargetError, match="microcontrollers"):
        toolchain(arch)


def test_a_wrong_sysroot_is_the_compilers_own_error(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        unavailable("gcc is not installed; on Debian: apt install gcc")
    (tmp_path / "main.c").write_text('#include <string.h>\nint main(void) { return (int)strlen(""); }\n')
    found = toolchain("x86_64", sysroot=str(tmp_path))
    with pytest.raises(OutputError, match=r"gcc fails:\n.*string\.h"):
        found.run("-c", tmp_path / "main.c", "-o", tmp_path / "main.o")


@pytest.mark.parametrize(
    ("libc", "newest"), [("glibc", None), ("glibc-2.17", (2, 17)), ("musl", None), ("glibc-2.34", (2, 34))]
)
def test_the_newest_glibc_is_what_the_target_says(libc: str, newest: tuple[int, int] | None) -> None:
    assert Toolchain(arch="x86_64", cc="gcc", libc=libc).newest_glibc == newest


def test_tools_are_those_of_the_compiler(tmp_path: Path) -> None:
    for arch in ("x86_64", "aarch64"):
        try:
            tools = toolchain(arch)
        except RuntimeMissingError as error:
            unavailable(str(error))
        (tmp_path / "one.c").write_text("int one(void) { return 1; }\n")
        tools.run("-c", tmp_path / "one.c", "-o", tmp_path / "one.o")
        assert " T one" in tools.tool("nm", tmp_path / "one.o")
        with pytest.raises(OutputError, match="nm fails"):
            tools.tool("nm", tmp_path / "absent.o")
    with pytest.raises(RuntimeMissingError, match="comes without no-tool; install its binutils"):
        tools.tool("no-tool")
