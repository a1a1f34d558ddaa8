"""Compile and link a model's library, and check what it asks of a device."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgevit.backends.tvm.compile.clib.emit import writing_object
from edgevit.backends.tvm.compile.clib.source import Library, checked_name
from edgevit.backends.tvm.compile.toolchain import Toolchain
from edgevit.backends.tvm.run.asked import MATH, PLAIN, POOLED
from edgevit.backends.tvm.run.plugin import SYMBOL
from edgevit.errors import BoundError, OutputError
from edgevit.util.atomic import scratch
from edgevit.util.strict_json import write_atomic

FOLDER = "lib"
COMPILE = ("-std=c99", "-O2", "-fPIC", "-fno-stack-protector", "-U_FORTIFY_SOURCE", "-fno-asynchronous-unwind-tables")
LINK = ("-shared", "-nostartfiles", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-s")
VERSION = re.compile(r"^\s*[UwWvV]\s+(\S+?)(?:@+(\S+))?(?:\s.*)?$")


def write(
    library: Library, executable: Any, folder: Path, tools: Toolchain, *, options: Sequence[str] = ()
) -> tuple[str, ...]:
    """Write archive, shared library, header and sources into `folder`/lib, and return their paths in `folder`.

    Raises:
        BoundError: the model does something that there is no C for, or the library asks for more than it may.
        OutputError: the compiler refuses, or the disk.
    """
    name = checked_name(library.name)
    texts = library.files()
    with scratch() as work:
        for file, text in texts.items():
            (work / file).write_text(text, encoding="utf-8")
        archive, shared = compiled(library, executable, work, tools, options)
        content: dict[str, bytes | str] = {f"lib{name}.a": archive.read_bytes(), f"lib{name}.so": shared.read_bytes()}
    content |= {file: text for file, text in texts.items() if not file.startswith("plugin.")}
    try:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        for file, data in content.items():
            write_atomic(folder / FOLDER / file, data)
    except OSError as error:
        raise OutputError(f"cannot write the C library into {folder}: {error.strerror or error}") from error
    return tuple(f"{FOLDER}/{file}" for file in sorted(content))


def compiled(
    library: Library, executable: Any, work: Path, tools: Toolchain, options: Sequence[str] = ()
) -> tuple[Path, Path]:
    """Compile the sources in `work` and return the paths of the archive and of the shared library."""
    name, pooled = library.name, library.lowered.isa.threads > 1
    flags = (*COMPILE, *options, f"-ffile-prefix-map={work}=.", *(["-pthread"] if pooled else []))
    if tools.arch == "aarch64":  # else atomics are calls of the compiler's library
        flags = (*flags, "-mno-outline-atomics")
    kernels = work / "kernels.o"
    (native,) = [module for module in executable.mod.imports if module.kind == "llvm"]
    with writing_object(native, kernels):
        for source in (name, "plugin"):
            tools.run(*flags, "-I", work, "-c", work / f"{source}.c", "-o", work / f"{source}.o")
    # One object, of which nothing can be seen but what the header names: so two models fit into one program.
    whole = work / f"{name}_all.o"
    tools.run("-r", "-nostdlib", work / f"{name}.o", kernels, "-o", whole)
    kept = [f"--keep-global-symbol={symbol}" for symbol in library.exported]
    tools.tool("objcopy", "--strip-debug", *kept, whole)
    asked = check_symbols(tools.tool("nm", "--undefined-only", whole), pooled=pooled)
    archive, shared = work / f"lib{name}.a", work / f"lib{name}.so"
    archive.unlink(missing_ok=True)
    tools.tool("ar", "rcsD", archive, whole)
    script = work / "symbols.map"
    script.write_text("{ global: " + "".join(f"{each}; " for each in (*library.exported, SYMBOL)) + "local: *; };\n")
    # Without threads it takes memcpy and the like from whichever C library a program has, of any version.
    more = ["-pthread" if pooled else "-nostdlib", *(["-lm"] if asked & MATH else [])]
    tools.run(
        *LINK,
        *more,
        f"-Wl,-soname,{shared.name}",
        f"-Wl,--version-script={script}",
        whole,
        work / "plugin.o",
        "-o",
        shared,
    )
    check_versions(tools.tool("nm", "-D", "--undefined-only", shared), tools)
    return archive, shared


def check_symbols(listed: str, *, pooled: bool) -> frozenset[str]:
    """Return what an object asks for, `listed` by nm; refuse what might allocate, read files or start threads.

    Raises:
        BoundError: it does; names the symbols.
    """
    allowed = PLAIN | MATH | (POOLED if pooled else frozenset())
    asked = {found[1] for line in listed.splitlines() if (found := VERSION.match(line))}
    if other := sorted(asked - allowed):
        raise BoundError(f"the C library asks for {', '.join(other)}: what that takes of memory is not known")
    return frozenset(asked)


def check_versions(listed: str, tools: Toolchain) -> None:
    """Refuse a shared library that a device's glibc is too old for.

    Raises:
        OutputError: a symbol is of a newer glibc than the target names; names it and its version.
    """
    newest = tools.newest_glibc
    if newest is None:
        return
    for line in listed.splitlines():
        found = VERSION.match(line)
        version = found and re.fullmatch(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?", found[2] or "")
        if found and version and (int(version[1]), int(version[2])) > newest:
            raise OutputError(
                f"the C library asks for {found[1]} of glibc {version[1]}.{version[2]}, the target says "
                f"{tools.libc}; let its sysroot be one of that version"
            )
