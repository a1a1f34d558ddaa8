"""Run many images with random efforts through a bundle's runners: nothing may grow, and nothing may come out otherwise.

Each runner runs in a process of its own (`python -m tests.chaos.soak REQUEST`), which answers with one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.backends import NO_TOKENS, Runner, tvm
from edgevit.bundle.read import open_bundle
from edgevit.devices import local
from edgevit.images.image_set import load_images
from edgevit.images.labelled import open_labelled, prepare_all, subset
from edgevit.measure.environment import cpu_flags
from edgevit.schema.manifest import Bundle, Manifest
from edgevit.schema.target import load_target, missing_flags
from edgevit.util.resources import shipped

ROOT = Path(__file__).parents[2]
NATIVE = "tvm, C++ runner"
RUNNERS = ("onnxruntime", "openvino", "tvm", NATIVE)
TARGETS = {
    "onnxruntime": ("x86-64-onnxruntime", "x86-64-avx2-onnxruntime"),
    "openvino": ("x86-64-openvino",),
    "tvm": ("x86-64-avx512vnni-tvm", "x86-64-avxvnni-tvm", "x86-64-v4-tvm", "x86-64-v3-tvm", "x86-64-v2-tvm"),
}
GROWTH_BYTES = 1_000_000
COMPARED = 200  # runs whose outputs are kept, and run again at the end
WARM_UP = 1000  # runs before memory is looked at, the compared ones among them
SAMPLES = 20  # how often it is looked at


@dataclass(frozen=True, kw_only=True)
class Soaked:
    """What came of one runner; `wrong` is empty where all held.

    Attributes:
        runner: one of RUNNERS.
        runs: after the warm-up.
        distinct: images, which are taken in turn.
        resident: bytes of the process that runs the model, after the warm-up and then evenly to the end.
        compared: runs of the beginning whose logits and gates are bit for bit those of the end, and of two threads and
            two processes at a time.
        gates: decisions of gates that were held against the effort.
        wrong: what did not hold.
    """

    runner: str
    runs: int
    distinct: int
    resident: tuple[int, ...]
    compared: int
    gates: int
    wrong: str

    @property
    def growth(self) -> int:
        return self.resident[-1] - self.resident[0]


class Gates:
    """Holds decisions of gates against the effort they were made at.

    Without limit upwards every gate is open, downwards closed; branches without one do not depend on it. The first gate
    decides on what no other decision has changed, so that for one image it opens at one effort and stays open above.
    Likewise after the first point where tokens merge more effort never leaves fewer of them.
    """

    def __init__(self, manifest: Manifest, images: int) -> None:
        self._gated = np.array([branch.gated for branch in manifest.branches], dtype=bool)
        self._first = next(iter(np.flatnonzero(self._gated)), None)  # of a model that merges tokens alone there is none
        self._fixed: np.ndarray | None = None
        self._closed = np.full(images, -np.inf)  # the highest effort at which the first gate was closed
        self._open = np.full(images, np.inf)
        self._left: dict[int, tuple[float, int]] = {}  # the last effort, and patch tokens after the first point
        self.seen = 0

    def check(self, index: int, effort: float, gates: np.ndarray, tokens: np.ndarray = NO_TOKENS) -> None:
        fixed, own = gates[~self._gated], gates[self._gated]
        self._fixed = fixed if self._fixed is None else self._fixed
        assert np.array_equal(fixed, self._fixed), f"image {index}, effort {effort}: a branch without a gate changed"
        assert np.isin(gates, (0, 1)).all(), f"image {index}, effort {effort}: gates {gates.tolist()}"
        if np.isinf(effort):
            assert (own == (effort > 0)).all(), f"image {index}, effort {effort}: gates {gates.tolist()}"
        elif self._first is None:
            pass
        elif gates[self._first]:
            self._open[index] = min(self._open[index], effort)
        else:
            self._closed[index] = max(self._closed[index], effort)
        apart = self._closed[index] < self._open[index]
        assert apart, f"image {index}: the first gate is closed at {self._closed[index]}, open at {self._open[index]}"
        self.seen += own.size + tokens.size
        if tokens.size:
            (before, most), self._left[index] = self._left.get(index, (effort, tokens[0])), (effort, tokens[0])
            more = (effort > before) - (effort < before)
            said = f"image {index}: {most} tokens at effort {before}, {tokens[0]} at {effort}"
            assert more * int(tokens[0]) >= more * int(most), said


def drawn(seed: int, run: int, images: int) -> tuple[int, float]:
    """Which image a run takes, in turn, and a random effort, at times without limit; the same for the same run."""
    rng = np.random.default_rng((seed, run))
    kind = rng.random()
    effort = np.inf if kind < 0.1 else -np.inf if kind < 0.2 else float(np.float32(rng.normal(0, 4)))
    return run % images, effort


def soak(bundle: Path, runner: str, images: Path, *, runs: int, seed: int = 0) -> Soaked:
    """Soak one runner, then run the beginning in two processes at a time, of two threads each.

    Args:
        bundle: of the runner's runtime.
        runner: one of RUNNERS.
        images: a .npy of uint8 `[n, height, width, 3]`.
        runs: after the warm-up.
        seed: of the efforts.
    """
    request = {"bundle": str(bundle), "runner": runner, "images": str(images), "runs": runs, "seed": seed}
    alone = _child(request)
    with ThreadPoolExecutor(2) as pool:
        beside = list(pool.map(_child, [{**request, "runs": 0, "threads": 2}] * 2))
    digests = {digest for answer in (alone, *beside) for digest in answer["digests"]}
    faults = [answer["fault"] for answer in (alone, *beside) if answer["fault"]]
    if not faults and len(digests) != 1:
        faults.append(f"{len(digests)} different outputs of the same runs alone and beside each other")
    resident = tuple(alone["resident"]) or (0,)
    if not faults and resident[-1] - resident[0] >= GROWTH_BYTES:
        faults.append(f"resident memory grew by {resident[-1] - resident[0]} bytes, allowed: {GROWTH_BYTES}")
    return Soaked(
        runner=runner,
        runs=runs,
        distinct=alone["distinct"],
        resident=resident,
        compared=alone["compared"],
        gates=alone["gates"],
        wrong="; ".join(faults),
    )


def _child(request: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.chaos.soak", json.dumps(request)]
    limit_s = 900 + request["runs"]  # a deadlock is a fault too
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return _failed(f"no answer within {limit_s} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return _failed(f"ended with {done.returncode}: {last}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _failed(fault: str) -> dict[str, Any]:
    return {"fault": fault, "digests": [], "resident": [], "distinct": 0, "compared": 0, "gates": 0}


def main(request: dict[str, Any]) -> dict[str, Any]:
    """One process: several threads do the compared runs at a time, or one does them, all others, and them again."""
    images = np.load(request["images"], allow_pickle=False)  # all of it in memory before anything is counted
    threads, seed, compared = request.get("threads", 1), request["seed"], COMPARED
    with open_bundle(Path(request["bundle"])) as bundle:
        gates, lock = Gates(bundle.manifest, len(images)), threading.Lock()

        def run(runner: Runner, number: int) -> bytes:
            index, effort = drawn(seed, number, len(images))
            answer = runner.answer(images[index : index + 1], effort)
            with lock:
                gates.check(index, effort, answer.gates, answer.tokens)
            return answer.logits.tobytes() + answer.gates.tobytes() + answer.tokens.tobytes()

        def begin(_: int) -> str:
            with _loaded(bundle, request["runner"]) as runner:
                return hashlib.sha256(b"".join(run(runner, number) for number in range(compared))).hexdigest()

        if not request["runs"]:
            with ThreadPoolExecutor(threads) as pool:
                digests, resident = list(pool.map(begin, range(threads))), []
        else:
            with _loaded(bundle, request["runner"]) as runner:
                first = [run(runner, number) for number in range(compared)]
                warm = min(WARM_UP, request["runs"])
                resident = _resident_while(runner, lambda n: run(runner, n), compared, warm, request["runs"])
                again = [run(runner, number) for number in range(compared)]
            assert first == again, f"{sum(a != b for a, b in zip(first, again, strict=True))} outputs became others"
            digests = [hashlib.sha256(b"".join(first)).hexdigest()]
    return {
        "digests": digests,
        "resident": resident,
        "distinct": len(images),
        "compared": compared,
        "gates": gates.seen,
        "fault": "",
    }


def _resident_while(runner: Runner, run: Any, begin: int, warm: int, runs: int) -> list[int]:
    """Resident memory of whoever runs the model after `warm` runs, then `SAMPLES` times during `runs` more."""
    process = getattr(runner, "_process", None)
    pid = os.getpid() if process is None else process.pid
    numbers = iter(range(begin, begin + warm + runs))
    found = []
    for part in (warm, *(runs * (i + 1) // SAMPLES - runs * i // SAMPLES for i in range(SAMPLES))):
        for _ in range(part):
            run(next(numbers))
        found.append(resident_bytes(pid))
    return found


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(re.search(r"^VmRSS:\s*(\d+) kB", status, re.M)[1])  # type: ignore[index]


@contextmanager
def _loaded(bundle: Bundle, runner: str) -> Iterator[Runner]:
    if runner != NATIVE:
        with local.loaded(bundle, 1) as found:
            yield found
        return
    with closing(tvm.start(bundle.folder)) as process:
        yield process


def build(model: str, runtime: str, folder: Path) -> Path:
    """Build a Program for this machine with the photographs that ship; what that costs in accuracy is no matter.

    Raises:
        RuntimeError: it cannot be built; says why.
    """
    target = next(name for name in TARGETS[runtime] if not missing_flags(load_target(name), cpu_flags()))
    text = (shipped("targets") / f"{target}.toml").read_text()
    for key, value in (("name", f'"{runtime}"'), ("min_agreement", "0.0"), ("max_top1_drop", "1.0")):
        text = re.sub(rf"^{key} = .*$", f"{key} = {value}", text, count=1, flags=re.M)
    folder.mkdir(parents=True, exist_ok=True)
    lenient, bundle = folder / f"{runtime}.toml", folder / runtime
    lenient.write_text(text)
    words = ["build", model, "--target", str(lenient), "-o", str(bundle), "--force"]
    done = subprocess.run(
        [sys.executable, "-m", "edgevit", *words], cwd=ROOT, env=_environment(), capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace"))
    return bundle


def decode(bundle: Path, data: Path | None, target: Path, most: int) -> int:
    """Decode real images once, as the bundle takes them, into a .npy; returns how many.

    From `data`, the folder with real images, the training images of CIFAR-10 for a model of such a size, else those of
    ImageNet's validation set; without one the photographs that ship.
    """
    with open_bundle(bundle) as opened:
        image = opened.manifest.input.preprocessing
    if data is None:
        pixels = load_images(shipped("calibration") / "shipped.toml", image).images
    elif image.height < 100:
        packed = open_labelled(data / "cifar10-train.npz")
        pixels = prepare_all(subset(packed, range(most)), image)[0]
    else:
        pixels = load_images(data / "imagenet-val-1000.tar", image, limit=most).images
    np.save(target, pixels)
    return len(pixels)


def to_row(soaked: Soaked) -> dict[str, Any]:
    return asdict(soaked) | {"growth": soaked.growth}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
