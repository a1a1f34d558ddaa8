"""Programs that bundles bring as examples: built as their README says, and held against the bundle's own runner."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from edgevit.schema.points import OperatingPoint
from tests.absent import unavailable

ANSWERS = """
import json, runpy, sys
import numpy as np
found = runpy.run_path("runner/run.py")
manifest = json.load(open("manifest.json"))
run = found["load_model"](manifest, manifest["target"]["threads"])
answers = [run(np.load(path), float(effort)) for path, effort in zip(sys.argv[1::2], sys.argv[2::2])]
print(json.dumps([[output.ravel().tolist() for output in answer] for answer in answers]))
"""
POINTS = (OperatingPoint(effort=-1e30, name="fast", macs=1e6, worst_macs=1_000_000, branches=0.0, images=4),)
FLAGS = {"gcc": "-DCMAKE_C_FLAGS", "g++": "-DCMAKE_CXX_FLAGS"}


def need_tools(compiler: str) -> None:
    """Skip, or fail where nothing may be missing, unless cmake and a compiler are there."""
    if shutil.which("cmake") is None or shutil.which(compiler) is None:
        unavailable(f"the example is built with cmake and {compiler}: apt install cmake {compiler}")


def built(folder: Path, compiler: str) -> Path:
    """Return the example of a bundle, built without a warning for the runtime of this Python."""
    need_tools(compiler)
    flags = f"{FLAGS[compiler]}=-Wall -Wextra -Wpedantic -Werror"
    for words in (["-B", "build", f"-DPython3_EXECUTABLE={sys.executable}", flags], ["--build", "build"]):
        done = subprocess.run(["cmake", *words], cwd=folder / "example", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "example/build/example"


def answered(program: Path, image: Path, *effort: str) -> subprocess.CompletedProcess[str]:
    """Run an example that was built in its bundle."""
    words = [str(program), "..", str(image), *effort]
    return subprocess.run(words, cwd=program.parents[1], capture_output=True, text=True, check=False)


def assert_answers_of_the_runner(folder: Path, program: Path, raw: Path) -> None:
    """Hold an example's answers to the golden inputs against those of runner/run.py, to the last bit."""
    golden = json.loads((folder / "manifest.json").read_text())["golden"]
    efforts = [{"all_open": "inf", "all_skipped": "-inf"}.get(case["path"], "0") for case in golden]
    words = [word for case, effort in zip(golden, efforts, strict=True) for word in (case["image"], effort)]
    told = subprocess.run(
        [sys.executable, "-c", ANSWERS, *words], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    seen = set()
    for case, effort, (logits, gates) in zip(golden, efforts, json.loads(told), strict=True):
        raw.write_bytes(np.load(folder / case["image"]).tobytes())
        done = answered(program, raw, effort)
        assert done.returncode == 0, done.stderr
        scores = {int(c): np.float32(v) for c, v in re.findall(r"^class (\d+): (\S+)$", done.stdout, re.M)}
        best = np.argsort(-np.array(logits), kind="stable")[:5]
        assert scores == {int(c): np.float32(logits[c]) for c in best}
        assert done.stdout.splitlines()[-1] == " ".join(map(str, gates)) + " (branches that ran)"
        seen.add(tuple(gates))
    assert len(seen) > 1


def assert_wrong_images_are_refused(program: Path, folder: Path) -> None:
    """A file that is too short, one that is too long, and none."""
    wrong = folder / "wrong.raw"
    for size in (1, 3 * 32 * 32 + 1):
        wrong.write_bytes(bytes(size))
        assert "does not hold 3072 bytes" in answered(program, wrong).stderr
    assert answered(program, folder / "absent.raw").returncode == 1


def assert_efforts_are_numbers_or_names(program: Path, raw: Path) -> None:
    """What is neither is refused, and none stands for 0; the bundle has `POINTS`."""
    raw.write_bytes(bytes(range(256)) * 12)
    assert (
        answered(program, raw, "fast").stdout == answered(program, raw, "-inf").stdout != answered(program, raw).stdout
    )
    for word in ("", "quick", "nan", "1,5", "0x"):
        done = answered(program, raw, word)
        assert done.returncode == 2 and done.stderr == f"{word} is no effort; allowed: a number, fast\n"
    assert answered(program, raw, "0", "1").stderr.startswith("usage: ")


def assert_link_it_can_be_followed(folder: Path) -> None:
    """Do what the README of a bundle says under `Link it`, word for word: it answers, and the bundle stays whole."""
    (part,) = re.findall(
        r"^## Link it$(.*?)^## Input$", (folder / "README.md").read_text(encoding="utf-8"), re.M | re.S
    )
    commands = [text for text in re.findall(r"^```\w*\n(.*?)^```$", part, re.M | re.S) if "golden/real" in text]
    own = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-e", "-c", "\n".join(commands)],
        cwd=folder,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    best = int(np.load(folder / "golden/real.logits.npy").argmax())
    assert f"\nclass {best}: " in f"\n{done.stdout}"
    checked = subprocess.run(
        [sys.executable, folder / "runner/run.py", "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
