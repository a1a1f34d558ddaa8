"""A board whose logins land in an emulated aarch64 system: the emulated device's libraries, and busybox.

Every login enters name spaces of its own, in which the kernel starts aarch64 programs with qemu; needs no root.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgevit.devices.qemu import packages
from edgevit.devices.qemu.emulator import Userland, cpuinfo
from edgevit.schema.arm_cpus import ARM_CPUS
from tests.absent import unavailable

QEMU = shutil.which("qemu-aarch64-static")
# An ELF file for aarch64, as Debian's qemu-user-static tells the kernel. P: programs see their names; F: the emulator
# is found before the root is another one.
BINFMT = (
    r":edgevit:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:"
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:{qemu}:PF"
)
CPU = "cortex-a72"
APPLETS = ("sh", "cat", "rm", "mkdir", "uname", "tar", "readlink", "df", "kill", "sleep")
GETCONF = "#!/bin/sh\ncase $1 in GNU_LIBC_VERSION) echo glibc 2.36;; LONG_BIT) echo 64;; *) exit 1;; esac\n"
ENTER = """\
set -e
chroot=$(PATH=$PATH:/usr/sbin:/sbin command -v chroot)
register=/proc/sys/fs/binfmt_misc
mount -t binfmt_misc binfmt_misc $register
printf %s '{binfmt}' > $register/register
for part in lib usr; do mount --bind {root}/$part {land}/$part; done
mount --rbind /proc {land}/proc
mount --bind {land}/cpuinfo {land}/proc/cpuinfo
mount --rbind /dev {land}/dev
mount --bind {site} {land}/site
mount --bind "$TMPDIR" "{land}$TMPDIR"
export QEMU_CPU={cpu} PATH=/bin:/usr/bin PYTHONPATH=/site PYTHONDONTWRITEBYTECODE=1
exec "$chroot" {land} /bin/sh -c "$SSH_ORIGINAL_COMMAND"
"""


def missing() -> str | None:
    """Why this machine cannot play such a board."""
    if QEMU is None:
        return "no qemu-aarch64-static to play the board: apt-get install qemu-user-static"
    script = f"mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc && echo '{BINFMT.format(qemu=QEMU)}'"
    command = ["unshare", "-Urm", "sh", "-c", f"{script} > /proc/sys/fs/binfmt_misc/register"]
    if shutil.which("unshare") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        return "this kernel, older than 6.7 or without user name spaces, has no binfmt_misc of a user's own"
    return None


def make(folder: Path, userland: Userland, tmp: Path) -> Path:
    """Make the system in `folder`, with `tmp` as its folder for temporary files; returns the login's program."""
    with tempfile.TemporaryDirectory(prefix="edgevit-") as scratch:
        options = packages._private(Path(scratch) / "apt")
        packages._run(["apt-get", *options, "update"], "")
        debs = packages._apt_download(("busybox-static",), Path(scratch) / "debs", options)
        packages._unpack(debs, folder)
    for name in ("lib", "usr", "proc", "site", "dev", str(tmp).lstrip("/")):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in APPLETS:
        (folder / "bin" / name).symlink_to("busybox")
    (folder / "bin/getconf").write_text(GETCONF)
    (folder / "bin/getconf").chmod(0o755)
    (folder / "cpuinfo").write_text(cpuinfo(ARM_CPUS[CPU]))
    assert QEMU is not None
    entering = ENTER.format(
        binfmt=BINFMT.format(qemu=QEMU),
        root=userland.folder / "root",
        site=userland.site,
        land=folder,
        cpu=ARM_CPUS[CPU].qemu,
    )
    (folder / "enter").write_text(entering)
    login = folder / "login"
    login.write_text(f"#!/bin/sh\nexec unshare -Urm sh {folder}/enter\n")
    login.chmod(0o755)
    return login


@contextmanager
def changed(path: Path, old: str, new: str) -> Iterator[None]:
    """Let a file of the system say something else for a while."""
    said = path.read_text()
    assert old in said
    path.write_text(said.replace(old, new))
    try:
        yield
    finally:
        path.write_text(said)


def need() -> None:
    """Skip, or fail where the project is checked as a whole and a package is all that is missing."""
    reason = missing()
    if reason is not None and QEMU is None:
        unavailable(reason)
    if reason is not None:
        pytest.skip(reason)
