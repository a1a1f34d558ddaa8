from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgevit.backends import backend
from edgevit.bundle.read import load_golden, open_bundle, rerun_golden, verify_bundle
from edgevit.errors import BundleError, ParityError
from edgevit.schema.manifest import Bundle
from edgevit.schema.manifest_file import parse_manifest
from tests.bundles import FixedRunner, rehash, rewrite, sample_bundle


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
        (lambda m: m.update(schema=99), "schema 99; this edgevit reads schema 1, 2 and 3"),
        (lambda m: m.update(surprise=1), "unknown key 'surprise'"),
        (lambda m: m.pop("bound"), "missing key 'bound'"),
        (lambda m: m["files"][0].update(path="../outside"), "leads out of the bundle"),
        (lambda m: m["files"][0].update(path="/etc/passwd"), "leads out of the bundle"),
        (lambda m: m.update(model="model/other.onnx"), "'model/other.onnx' is used but not among the files"),
        (lambda m: m["files"].append(m["files"][0]), "listed twice"),
        (lambda m: m["outputs"].pop(0), "no output 'logits'"),
        (lambda m: m["target"].update(threads=10**6), "target: threads is 1000000, allowed: 1 to 1024"),
        (lambda m: m["target"].update(threads=0), "target: threads is 0, allowed: 1 to 1024"),
        (lambda m: m["target"].update(threads=[]), "target.threads: got a list of 0, expected int"),
        (lambda m: m["target"].update(reasons=[]), "target.reasons: got list, expected a table"),
        (
            lambda m: m["target"].update(requires_flags={"a": 1}),
            "target.requires_flags: got a table of 1, expected a list",
        ),
        (lambda m: m["target"].pop("inference_precision"), "target: missing key 'inference_precision'"),
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


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header.encode("latin1") + data


def float_npy(shape: str, data: bytes = bytes(40), kind: str = "'<f4'") -> bytes:
    return npy(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}\n", data)


ODD_ARRAYS = {
    "nothing": b"",
    "text": b"logits",
    "a pickle": pickle.dumps([1.0]),
    "an archive of arrays": b"PK\x05\x06" + bytes(18),
    "objects": float_npy("(1, 10)", bytes(80), kind="'|O'"),
    "records": float_npy("(1, 10)", kind="[('a', '<f4')]"),
    "more than the file holds": float_npy("(1, 1000000000000)"),
    "more than can be counted": float_npy(f"(1, {10**30})"),
    "a negative shape": float_npy("(-1, 10)"),
    "a shape that is text": float_npy("'10'"),
    "70 dimensions": float_npy(str((1,) * 69 + (10,))),
    "a header of 20,000 bytes": npy(" " * 20_000),
    "a header that nests": npy("(" * 3000),
    "a header that never ends": b"\x93NUMPY\x01\x00\x10\x00'''" + b"x" * 13,
    "a header that is code": npy("__import__('os').abort()\n"),
    "a type that is none": float_npy("(1, 10)", kind="'<z9'"),
    "another version": b"\x93NUMPY\x09\x00" + bytes(100),
    "half floats": float_npy("(1, 10)", bytes(20), kind="'<f2'"),
}


@pytest.mark.parametrize("name", ODD_ARRAYS)
def test_an_odd_golden_array_is_refused(folder: Path, name: str) -> None:
    with open_bundle(folder) as bundle:
        case = bundle.manifest.golden[0]
    (folder / case.logits).write_bytes(ODD_ARRAYS[name])
    rehash(folder)
    with open_bundle(folder) as bundle, pytest.raises(BundleError, match=r"logits\S* in the bundle is "):
        load_golden(bundle, case)


@pytest.mark.parametrize(("logits", "gates"), [((1, 11), (4,)), ((10,), (4,)), ((1, 1), (4,)), ((1, 10), (3,))])
def test_a_model_that_gives_other_shapes_is_no_question_of_parity(
    shared: Path, logits: tuple[int, ...], gates: tuple[int, ...]
) -> None:
    with open_bundle(shared) as bundle, pytest.raises(BundleError, match="the model gives logits"):
        verify_bundle(bundle, FixedRunner(np.zeros(logits, np.float32), np.zeros(gates, np.uint8)))


TOLERANCE = b'"golden_tolerance": 0.001'
HOSTILE_MANIFESTS = {
    "a float of 401 digits": (TOLERANCE, b'"golden_tolerance": 1' + b"0" * 400),
    "an integer of 5000 digits": (b'"schema": 3', b'"schema": 3' + b"0" * 5000),
    "nested 100,000 deep": (b'"schema": 3', b'"schema": ' + b"[" * 100_000),
    "half a surrogate pair": (b'"name": "', rb'"name": "\ud800'),
    "a key twice": (b'"schema": 3', b'"schema": 3, "schema": 3'),
    "NaN": (TOLERANCE, b'"golden_tolerance": NaN'),
    "an infinite tolerance": (TOLERANCE, b'"golden_tolerance": 1e999'),
    "60,000 empty entries": (b'"claims": [', b'"claims": [' + b"{}," * 60_000),
    "60,000 empty files": (b'"files": [', b'"files": [' + b"{}," * 60_000),
    "5,000,000 empty entries": (b'"claims": [', b'"claims": [' + b"{}," * 5_000_000),
    "17 MB": (b"{", b"{" + b" " * (17 << 20)),
    "no UTF-8": (b'"name": "', b'"name": "\xff'),
}


@pytest.mark.parametrize("name", HOSTILE_MANIFESTS)
def test_a_hostile_manifest_is_one_short_error(folder: Path, name: str) -> None:
    old, new = HOSTILE_MANIFESTS[name]
    path = folder / "manifest.json"
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new, 1))
    with pytest.raises(BundleError) as caught, open_bundle(folder):
        pass
    assert len(str(caught.value)) < 4000 and caught.value.exit_code == 19


def test_a_manifest_that_is_a_pipe_or_a_device_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BundleError), open_bundle(folder):
        pass
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(BundleError), open_bundle(folder):
        pass


def test_a_bundle_that_is_a_pipe_or_a_device_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "b.zip")
    (tmp_path / "z.zip").symlink_to("/dev/zero")
    for name in ("b.zip", "z.zip"):
        with pytest.raises(BundleError, match="is a pipe or a device"), open_bundle(tmp_path / name):
            pass


@pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_zip_packed_in_another_way_is_refused_before_unpacking(tmp_path: Path, compression: int) -> None:
    path = pack(tmp_path / "b.zip", {"manifest.json": b"{}"}, compression=compression)
    with pytest.raises(BundleError, match="packed in a way that bundles never are"), open_bundle(path):
        pass


def test_a_zip_whose_content_is_damaged_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "b.zip", {"manifest.json": b'{"a": 1}' * 50}, compression=zipfile.ZIP_DEFLATED)
    raw = bytearray(path.read_bytes())
    start = 30 + len("manifest.json")
    raw[start : start + 4] = b"\xff" * 4
    path.write_bytes(raw)
    with pytest.raises(BundleError, match="cannot be read as a bundle's zip"), open_bundle(path):
        pass


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**12)
    | st.sampled_from((2**63, 10**400))
    | st.floats()
    | st.text(max_size=5)
    | st.characters(categories=("Cs", "Cc")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def change_anywhere(document: dict[str, Any], data: st.DataObject) -> None:
    """Replace one or two values of a document by any JSON value."""
    for _ in range(data.draw(st.integers(1, 2))):
        places: list[tuple[Any, Any]] = []
        waiting: list[Any] = [document]
        while waiting:
            value = waiting.pop()
            for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
                places.append((value, key))
                waiting.append(value[key])
        container, key = places[data.draw(st.integers(0, len(places) - 1))]
        container[key] = data.draw(VALUES)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_value_in_a_manifest_is_a_bundle_error_or_opens(data: st.DataObject, shared: Path) -> None:
    """Values anywhere replaced by any JSON value: never another exception, not from the golden arrays either."""
    document = json.loads((shared / "manifest.json").read_text())
    document["sha256"] = ""
    change_anywhere(document, data)
    try:
        manifest = parse_manifest(json.dumps(document).encode(), shared)
        bundle = Bundle(folder=shared, manifest=manifest, sha256="")
        rerun_golden(bundle, FixedRunner(np.zeros((1, 10), np.float32), np.zeros(4, np.uint8)))
    except BundleError as error:
        assert str(error)


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
