"""Programs that stand in for apt-get, dpkg-deb, pip, qemu and compilers: a user land in a second, without network."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

APT_GET = """
case "$*" in
  *update*) echo "W: nothing new" >&2 ;;
  *--simulate*) echo "Inst qemu-user (1:7.2 Debian [amd64])" ;;
  *download*) while [ "$1" != download ]; do shift; done; shift
    for name in "$@"; do echo "$name" > "$name.deb"; done ;;
esac
"""
APT_CACHE = 'echo "python3-minimal"; echo "  PreDepends: python3.11-minimal"'
DPKG_DEB = """
if [ "$1" = -f ]; then
  printf 'Package: %s\\nVersion: %s.0\\n' "$(cat "$2")" "${STANDINS_VERSION:-1}"
else
  mkdir -p "$3/usr/lib/x86_64-linux-gnu" "$3/usr/bin"
  cp "$HERE/qemu" "$3/usr/bin/qemu-aarch64"
fi
"""
# Counts what it is asked to; its guest is a Python that answers as the trial does.
QEMU = """
case "$*" in
  *--version*) echo "qemu-aarch64 version 7.2.22"; exit ;;
  *--help*) echo "-plugin"; exit ;;
  *out=*) out=${*#*out=}; out=${out%% *}; printf 'a b\\n1 2\\n' > "$out" ;;
esac
echo '["aarch64", ["2.4.6"]]'
"""
PIP = """
import sys, zipfile
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("-d") + 1])
folder.mkdir()
for line in Path(sys.argv[sys.argv.index("-r") + 1]).read_text().splitlines():
    name, version = line.split()[0].split("==")
    assert "--require-hashes" in sys.argv and "--hash=sha256:" in line
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "")
"""
SHELL = ("sh", "cat", "cp", "mkdir")  # what the programs themselves are made of


def make(folder: Path) -> None:
    """Make the programs in a new folder, which holds all of a shell that they need."""
    folder.mkdir()
    for name, script in {"apt-get": APT_GET, "apt-cache": APT_CACHE, "dpkg-deb": DPKG_DEB, "qemu": QEMU}.items():
        write(folder / name, script)
    (folder / "pip.py").write_text(PIP)
    write(folder / "python", f'shift 2; exec {sys.executable} {folder}/pip.py "$@"')
    for name in ("cc", "aarch64-linux-gnu-gcc"):
        write(folder / name, 'while [ "$1" != -o ]; do shift; done; echo plugin > "$2"')
    for name in SHELL:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)


def enter(folder: Path, version: str = "1") -> None:
    """Let this process, which must be a forked one, find these programs alone; `version` is that of every package."""
    os.environ.update({"PATH": str(folder), "HERE": str(folder), "STANDINS_VERSION": version})
    sys.executable = str(folder / "python")


def write(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
