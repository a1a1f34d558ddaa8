"""What tests share: real data where EDGEVIT_DATA points to it, an emulated device, one thread per test process."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgevit.devices.qemu import userland
from edgevit.devices.qemu.emulator import Userland
from edgevit.errors import DeviceError
from tests.absent import unavailable

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOM_BYTES = 600 << 20  # what a test that reads files made to fill the memory may take


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real weights and labelled images."""
    value = os.environ.get("EDGEVIT_DATA")
    if not value:
        pytest.skip("EDGEVIT_DATA is not set: this test needs real weights and images")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"EDGEVIT_DATA is {value}, which is no folder")
    return folder


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Userland]:
    """The user's emulated device; in CI one that the first test process that needs it sets up for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("EDGEVIT_CI"):
            here = tmp_path_factory.getbasetemp()
            folder = (here.parent if "PYTEST_XDIST_WORKER" in os.environ else here) / "devices"
            folder.mkdir(exist_ok=True)
            patch.setenv("EDGEVIT_DEVICES", str(folder))
            with (folder / "set-up").open("a") as done:
                fcntl.flock(done, fcntl.LOCK_EX)
                if not done.tell():
                    userland.setup(("onnxruntime", "openvino"), ("cortex-a76",))
                    done.write("done")
        try:
            made = userland.installed()
        except DeviceError as error:
            unavailable(str(error))
        if made.plugin is None:
            unavailable(made.uncounted)
        yield made


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What a test may take beyond what the process has; more is a MemoryError, which fails it."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
