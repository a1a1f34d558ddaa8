from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgevit.errors import BundleError
from edgevit.measure.fresh_process import probe_local, probe_runner, trace_local
from edgevit.schema.measurement import ProcessMemory

IMAGES = np.zeros((1, 8, 8, 3), np.uint8)
BACKEND = """
import numpy as np
{imports}
def versions(): return {{"fake": "1"}}
class Runner:
    def run(self, image, effort=0.0):
        {run}
        return np.zeros((1, 3), np.float32), np.ones(4, np.uint8)
def load(folder, **settings):
    {load}
    return Runner()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules the fresh process can import."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").write_text("")
    return tmp_path / "fake_backend.py"


def write(module: Path, *, imports: str = "", load: str = "pass", run: str = "pass") -> None:
    module.write_text(BACKEND.format(imports=imports, load=load, run=run))


def probe() -> object:
    return probe_local("fake_backend", Path("model.bin"), IMAGES, [0.0, 1.0], threads=1, precision="f32")


def test_what_a_run_takes_shows_in_the_peak_and_what_loading_takes_in_the_middle(module: Path) -> None:
    write(module)
    empty = probe()
    write(module, load="global held; held = np.ones(30_000_000, np.uint8)", run="np.ones(60_000_000, np.uint8)")
    full = probe()
    grown = [
        getattr(full.process, key) - getattr(empty.process, key)  # type: ignore[attr-defined]
        for key in ("imported_bytes", "loaded_bytes", "peak_bytes")
    ]
    assert abs(grown[0]) < 5e6 and abs(grown[1] - 30e6) < 5e6 and abs(grown[2] - 90e6) < 5e6


def test_a_process_that_loads_torch_is_no_device(module: Path) -> None:
    write(module, imports="import torch")
    with pytest.raises(BundleError, match="loaded torch; a device has none of them"):
        probe()


def test_a_process_that_fails_is_told_with_its_last_words(module: Path) -> None:
    write(module, load="raise RuntimeError('no such kernel')")
    with pytest.raises(BundleError, match="cannot load and run the model: RuntimeError: no such kernel"):
        probe()
    with pytest.raises(BundleError, match="cannot load and run the model"):
        trace_local(
            "edgevit.backends.onnxruntime",
            Path("missing.onnx"),
            IMAGES,
            branches=[],
            gated=[],
            threads=1,
            precision="f32",
            weight_bits=8,
        )


STARTED = """
class Runner:
    told, closed, efforts = {{}}, 0, []
    def run(self, image, effort):
        self.efforts.append(effort)
        n = len(self.efforts)
        {broken}
        self.told = dict(
            load_ms=3.5, started_bytes={held}, load_peak_bytes=2 * {held}, peak_bytes=(2 + n) * {held},
            wall_ms={{"min": 1.0 * n, "median": 1.5 * n}},
        )
    def close(self):
        Runner.closed += 1
def start(folder, *, threads):
    assert (folder.name, threads) == ("model", 2)
    return Runner()
"""


@pytest.mark.parametrize("held", [1_000_000, 0])
def test_a_program_of_its_own_tells_the_same(module: Path, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.syspath_prepend(str(module.parent))
    (module.parent / f"started_{held}.py").write_text(STARTED.format(held=held, broken="pass"))
    found = probe_runner(f"started_{held}", Path("model/model.so"), IMAGES, [0.0, 1.0], threads=2)
    assert (found.load_ms, found.first_run_ms, found.trace) == (3.5, 1.5, None)
    known = ProcessMemory(imported_bytes=held, loaded_bytes=2 * held, peak_bytes=4 * held)
    assert found.process == (known if held else None)  # a system that does not tell says 0


def test_a_program_that_fails_is_closed(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(module.parent))
    (module.parent / "failing.py").write_text(STARTED.format(held=1, broken="raise RuntimeError('no')"))
    with pytest.raises(RuntimeError, match="no"):
        probe_runner("failing", Path("model/model.so"), IMAGES, [0.0], threads=2)
    import failing  # type: ignore[import-not-found]

    assert failing.Runner.closed == 1
