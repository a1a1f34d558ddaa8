from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgevit.backends import backend
from edgevit.bundle.read import load_golden, open_bundle, verify_bundle
from edgevit.errors import BundleError, ParityError
from tests.bundles import FixedRunner, rewrite, sample_bundle


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    shutil.copytree(shared, tmp_path / "tiny")
    return tmp_path / "tiny"


def edit(folder: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    data = json.loads((folder / "manifest.json").read_text())
    change(data)
    rewrite(folder, data)


def pack(target: Path, members: dict[str, bytes], mode: int = 0o100644, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", compression=compression) as archive:
        for name, raw in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = compression
            archive.writestr(info, raw)
    return target


def test_folder_and_zip_open_as_the_same_bundle(shared: Path) -> None:
    with open_bundle(shared) as plain, open_bundle(shared.parent / "tiny.zip") as zipped:
        assert plain.manifest == zipped.manifest
        assert plain.sha256 == zipped.sha256
        unpacked = zipped.folder
        assert unpacked != shared
    assert not unpacked.exists()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_golden_outputs_are_reproduced_on_both_runtimes(tmp_path: Path, runtime: str) -> None:
    folder = sample_bundle(tmp_path / "tiny", runtime=runtime)
    with open_bundle(folder) as bundle:
        runner = backend(runtime).load(bundle.folder / "model")
        results = verify_bundle(bundle, runner)
        runner.close()
    assert [(r.path, r.held) for r in results] == [("all_open", True), ("all_skipped", True), ("real", True)]


def test_a_flipped_gate_and_a_shifted_logit_are_told_apart(shared: Path) -> None:
    with open_bundle(shared) as bundle:
        golden = {case.path: load_golden(bundle, case) for case in bundle.manifest.golden}
        _, logits, gates = golden["all_open"]
        with pytest.raises(ParityError, match="all_skipped.*gates that changed: b00_mhsa"):
            verify_bundle(bundle, FixedRunner(logits, gates))
        one = dataclasses.replace(bundle.manifest, golden=bundle.manifest.golden[:1])
        only = dataclasses.replace(bundle, manifest=one)
        assert verify_bundle(only, FixedRunner(logits + np.float32(0.9e-3), gates))[0].held
        with pytest.raises(ParityError, match="1 of 1 golden.*\n.*differ by up to 0.002.*, allowed: 0.001"):
            verify_bundle(only, FixedRunner(logits + np.float32(2e-3), gates))


def test_every_changed_missing_added_or_linked_file_is_named(folder: Path) -> None:
    (folder / "labels.txt").write_text("smuggled")
    (folder / "runner" / "run.py").unlink()
    (folder / "golden" / "real.gates.npy").unlink()
    (folder / "golden" / "real.gates.npy").symlink_to("all_open.gates.npy")
    model = folder / "model" / "model.onnx.data"
    raw = bytearray(model.read_bytes())
    raw[100] ^= 1
    model.write_bytes(raw)
    with pytest.raises(BundleError) as caught, open_bundle(folder):
        pass
    message = str(caught.value)
    for part in (
        "labels.txt: not listed",
        "runner/run.py: No such file",
        "golden/real.gates.npy: is a link",
        "model/model.onnx.data: sha256",
    ):
        assert part in message


def test_what_is_no_bundle_is_said_to_be_none(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"), open_bundle(tmp_path / "nowhere"):
        pass
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"holds no manifest\.json"), open_bundle(tmp_path / "empty"):
        pass
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(BundleError, match="cannot be read as a bundle's zip"), open_bundle(tmp_path / "text.zip"):
        pass
    (folder / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="not JSON"), open_bundle(folder):
        pass


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(schema=99), "schema 99; this edgevit reads schema 1"),
        (lambda m: m.update(surprise=1), "unknown key 'surprise'"),
        (lambda m: m.pop("bound"), "missing key 'bound'"),
        (lambda m: m["files"][0].update(path="../outside"), "leads out of the bundle"),
        (lambda m: m["files"][0].update(path="/etc/passwd"), "leads out of the bundle"),
        (lambda m: m.update(model="model/other.onnx"), "'model/other.onnx' is used but not among the files"),
        (lambda m: m["files"].append(m["files"][0]), "listed twice"),
        (lambda m: m["outputs"].pop(0), "no output 'logits'"),
        (lambda m: m["target"].update(threads=10**6), "target: threads is 1000000, allowed: 1 to 1024"),
        (lambda m: m["target"].update(threads=0), "target: threads is 0, allowed: 1 to 1024"),
    ],
)
def test_a_manifest_with_faults_is_refused(folder: Path, change: Callable[[dict], None], said: str) -> None:  # type: ignore[type-arg]
    edit(folder, change)
    with pytest.raises(BundleError, match=said), open_bundle(folder):
        pass


def test_a_manifest_tells_when_it_was_changed_and_an_older_one_has_no_digest(folder: Path) -> None:
    path = folder / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"crop_pct": 0.', '"crop_pct": 1.', 1))
    assert path.read_text() != text
    with pytest.raises(BundleError, match="changed since it was written"), open_bundle(folder):
        pass
    data = json.loads(text)
    del data["sha256"]
    path.write_text(json.dumps(data))
    with open_bundle(folder) as bundle:
        assert bundle.manifest.sha256 == ""


@pytest.mark.parametrize("name", ["../evil", "/abs/evil", "a/../../evil", "C:\\evil", "..\\evil", "a//b"])
def test_a_zip_member_that_leads_out_is_refused_before_unpacking(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / "evil.zip", {"manifest.json": b"{}", name: b"x"})
    with pytest.raises(BundleError, match="leads out of the bundle"), open_bundle(path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["evil.zip"]


def test_links_twins_and_bombs_in_a_zip_are_refused(tmp_path: Path) -> None:
    link = pack(tmp_path / "link.zip", {"manifest.json": b"/etc/passwd"}, mode=0o120777)
    with pytest.raises(BundleError, match="is a link"), open_bundle(link):
        pass
    twins = pack(tmp_path / "twins.zip", {"manifest.json": b"{}", "Manifest.json": b"{}"})
    with pytest.raises(BundleError, match="there twice"), open_bundle(twins):
        pass
    bomb = pack(tmp_path / "bomb.zip", {"manifest.json": bytes(10_000_000)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleError, match="would unpack to 10000000 bytes"), open_bundle(bomb):
        pass


def test_a_member_longer_than_its_header_says_is_refused(shared: Path, tmp_path: Path) -> None:
    raw = bytearray((shared.parent / "tiny.zip").read_bytes())
    for cut in (len(raw) // 2, len(raw) - 10, 10):
        path = tmp_path / f"cut{cut}.zip"
        path.write_bytes(raw[:cut])
        with pytest.raises(BundleError), open_bundle(path):
            pass


def test_a_golden_array_of_another_shape_is_refused(folder: Path) -> None:
    edit(folder, lambda m: m["outputs"][0].update(shape=[1, 11]))
    with open_bundle(folder) as bundle, pytest.raises(BundleError, match=r"is float32 \[1, 10\], expected .*\[1, 11\]"):
        load_golden(bundle, bundle.manifest.golden[0])


def test_reading_needs_no_torch_timm_onnx_or_safetensors(shared: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgevit.bundle.read import open_bundle\n"
        f"with open_bundle(Path({str(shared)!r})): pass\n"
        "print(sorted({'torch', 'timm', 'onnx', 'safetensors', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_any_changed_byte_of_a_zip_is_refused_or_harmless(shared: Path, tmp_path: Path) -> None:
    """Not a crash of any other kind: the zip's directory is damaged at every 11th byte, its content here and there."""
    raw = (shared.parent / "tiny.zip").read_bytes()
    with open_bundle(shared) as bundle:
        intact = bundle.manifest
    directory = raw.index(b"PK\x01\x02")
    rng = np.random.default_rng(0)
    refused = 0
    for index in [*range(directory, len(raw), 11), *rng.integers(0, directory, 20).tolist()]:
        changed = bytearray(raw)
        changed[index] ^= int(rng.integers(1, 256))
        path = tmp_path / "changed.zip"
        path.write_bytes(changed)
        try:
            with open_bundle(path) as bundle:
                assert bundle.manifest == intact
        except BundleError:
            refused += 1
    assert refused > 30
