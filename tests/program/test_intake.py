"""Weights files that mean harm: each ends in one WeightsError or ProgramError, before memory is taken."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgevit.errors import ProgramError, WeightsError
from edgevit.frontends.checkpoint import load_checkpoint
from edgevit.program.program import load_program, save_program
from tests.tiny import tiny_program

MANY = 40 << 20


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: str = "F32", shape: Any = (1,), end: int = 4) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": [0, end]}}


SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "a header longer than the file": (safetensors({}, length=1 << 62), "header claims"),
    "an empty file": (b"", "header claims"),
    "a header nested 100,000 deep": (safetensors(b'{"a":' * 100_000), "nests too deep"),
    "a shape of 401 digits": (safetensors(b'{"a":{"dtype":"F32","shape":[1' + b"0" * 400 + b"]}}"), "401 digits"),
    "a tensor twice": (safetensors(b'{"a":{"dtype":"F32","shape":[]},"a":{}}'), "is there twice"),
    "a list as header": (safetensors([1]), "no table"),
    "an entry that is no tensor": (safetensors({"a": 3}), "is no tensor"),
    "an entry without a shape": (safetensors({"a": {"dtype": "F32"}}), "is no tensor"),
    "a type that is a list": (safetensors({"a": {"dtype": ["F32"], "shape": [1]}}), "allowed: F64"),
    "F8_E4M3": (safetensors(entry("F8_E4M3", (4,)), b"\0" * 4), "holds 'F8_E4M3', allowed: F64"),
    "F8_E5M2": (safetensors(entry("F8_E5M2", (4,)), b"\0" * 4), "holds 'F8_E5M2'"),
    "F8_E8M0": (safetensors(entry("F8_E8M0", (4,)), b"\0" * 4), "holds 'F8_E8M0'"),
    "F4": (safetensors(entry("F4", (8,)), b"\0" * 4), "holds 'F4'"),
    "a type of the future": (safetensors(entry("F3.5\x1b[2J", (8,)), b"\0" * 4), r"holds 'F3.5\\x1b"),
    "a shape of 10**12": (safetensors(entry(shape=(10**12,), end=4 * 10**12), b"\0" * 4), "claims the shape"),
    "a negative shape": (safetensors(entry(shape=(-1, -1)), b"\0" * 4), "claims the shape"),
    "a shape of floats": (safetensors(entry(shape=(1.0,)), b"\0" * 4), "claims the shape"),
    "nine dimensions": (safetensors(entry(shape=[1] * 9), b"\0" * 4), "9 dimensions"),
    "a name of 100,000 characters": (
        safetensors({"n" * 100_000: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        "100000 characters",
    ),
    "60,000 tensors": (
        safetensors({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(60_000)}),
        "60000 tensors",
    ),
    "offsets that overlap": (
        safetensors({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, b"\0" * 4),
        "safetensors",
    ),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_hostile_safetensors_file_is_refused_as_weights_and_in_a_program(name: str, tmp_path: Path) -> None:
    raw, words = SAFETENSORS[name]
    (tmp_path / "w.safetensors").write_bytes(raw)
    with pytest.raises(WeightsError, match=words) as caught:
        load_checkpoint(tmp_path / "w.safetensors")
    assert len(str(caught.value)) < 600
    save_program(tiny_program(), tmp_path / "p")
    (tmp_path / "p" / "weights.safetensors").write_bytes(raw)
    with pytest.raises(ProgramError, match=words.replace("allowed: F64", "allowed: F32")):
        load_program(tmp_path / "p")


def expanded() -> Any:
    return torch.zeros(1).expand(1000, 1000)


def looped() -> Any:
    content: dict[str, Any] = {"w": torch.zeros(1)}
    content["model"] = content
    return content


def looped_in_two() -> Any:
    one: dict[str, Any] = {"w": torch.zeros(1)}
    one["model"] = {"state_dict": one, "w": torch.zeros(1)}
    return one


def looped_beside() -> Any:
    settings: dict[str, Any] = {}
    settings["model"] = settings
    return {"model": settings}


def doubling() -> Any:
    """A tree of 2**60 dictionaries, each of which is in the file once."""
    content: dict[str, Any] = {}
    for _ in range(60):
        content = {"left": content, "right": content}
    return {"model": content}


def nested_tensor() -> Any:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.strided)


def deep() -> Any:
    content: dict[str, Any] = {"w": torch.zeros(1)}
    for _ in range(100):
        content = {"model": content}
    return content


def shared() -> Any:
    whole = torch.zeros(1_000_000)
    return {f"t{i}": whole for i in range(5000)}


TORCH: dict[str, tuple[Callable[[], Any], str]] = {
    "meta": (lambda: torch.empty(10**9, device="meta"), "is a meta tensor"),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8),
        "as files of quantized models",
    ),
    "stride 0": (expanded, "repeats numbers"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "dense real tensors are expected"),
    "sparse rows": (lambda: torch.zeros(0, 10**6).to_sparse(), "dense real tensors are expected"),
    "complex": (lambda: torch.zeros(2, dtype=torch.complex64), "dense real tensors are expected"),
    "float8": (lambda: torch.zeros(4).to(torch.float8_e4m3fn), "holds torch.float8_e4m3fn"),
    "float4": (lambda: torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "holds torch.float4_e2m1fn_x2"),
    "bits8": (lambda: torch.zeros(4, dtype=torch.uint8).view(torch.bits8), "holds torch.bits8"),
    "int8": (lambda: torch.zeros(4, dtype=torch.int8), "holds torch.int8"),
    "nine dimensions": (lambda: torch.zeros([1] * 9), "9 dimensions"),
}
NOT_IN_THE_OLD_FORM = ("float8", "float4", "bits8")  # which torch's form before 1.6 can hold, and torch cannot read
CONTENTS: dict[str, tuple[Callable[[], Any], str]] = {
    "a dictionary inside itself": (looped, "nests its dictionaries too deep"),
    "two dictionaries inside each other": (looped_in_two, "nests its dictionaries too deep"),
    "settings inside themselves": (looped_beside, "is not a state dict"),
    "dictionaries that double": (doubling, "is not a state dict"),
    "100 dictionaries": (deep, "nests its dictionaries too deep"),
    "5000 names for one tensor": (shared, "its tensors take more than"),
    "a long name": (lambda: {"n" * 1000: torch.zeros(1)}, "a name of 1000 characters"),
    "a bytearray": (lambda: {"w": torch.zeros(1), "x": bytearray(b"x")}, "objects of type builtins.bytearray"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", TORCH)
def test_a_tensor_that_is_no_plain_numbers_is_refused(name: str, zipped: bool, tmp_path: Path) -> None:
    make, words = TORCH[name]
    if not zipped and name in NOT_IN_THE_OLD_FORM:
        words = "is not a readable torch checkpoint"
    with warnings.catch_warnings(action="ignore"):  # that torch will not make such tensors for ever
        content = {"blocks.0.\x1b[2J": make()}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=words) as caught:
        load_checkpoint(tmp_path / "w.pth")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", CONTENTS)
def test_a_structure_that_means_harm_is_refused(name: str, tmp_path: Path) -> None:
    make, words = CONTENTS[name]
    torch.save(make(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=words):
        load_checkpoint(tmp_path / "w.pth")


def test_a_pickle_of_many_steps_is_refused_before_torch_takes_them(tmp_path: Path) -> None:
    body = pickle.PROTO + b"\x02" + (pickle.EMPTY_DICT + pickle.POP) * 600_000 + pickle.EMPTY_DICT + pickle.STOP
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/data.pkl", body)
        archive.writestr("w/version", "3")
    with pytest.raises(WeightsError, match="more than 1000000 steps"):
        load_checkpoint(tmp_path / "w.pth")
    (tmp_path / "old.pth").write_bytes(body)
    with pytest.raises(WeightsError, match="more than 1000000 steps"):
        load_checkpoint(tmp_path / "old.pth")


def packed(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, raw in members.items():
            archive.writestr(name, raw)
    return buffer.getvalue()


def npy(shape: tuple[int, ...] = (2,), dtype: str = "<f4", data: bytes = b"\0" * 8, header: str | None = None) -> bytes:
    text = header or repr({"descr": dtype, "fortran_order": False, "shape": shape})
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text.encode("latin1") + data


NPZ: dict[str, tuple[bytes, str]] = {
    "an array alone": (npy(), "zip is damaged"),
    "a pickle": (pickle.dumps({"a": 1}), "zip is damaged"),
    "unpacks to 40 MiB": (packed({"embedding/kernel.npy": npy((MANY // 4,), data=b"\0" * MANY)}), "it unpacks to 419"),
    "unpacks in parts": (packed({f"{i}.npy": b"\0" * (MANY // 40) for i in range(41)}), "it unpacks to 429"),
    "a shape of 10**12": (packed({"embedding/kernel.npy": npy((10**12,))}), r"claims \[1000000000000\]"),
    "a negative shape": (packed({"embedding/kernel.npy": npy((-2,))}), "an array has shape"),
    "objects": (packed({"embedding/kernel.npy": npy(dtype="|O")}), "allowed: numbers"),
    "records": (
        packed({"embedding/kernel.npy": npy(header="{'descr': [('a','<f4')], 'fortran_order': False, 'shape': (2,)}")}),
        "allowed: numbers",
    ),
    "a header of 20,000 bytes": (packed({"embedding/kernel.npy": npy(header=" " * 20_000)}), "damaged"),
    "a shape of True": (
        packed({"embedding/kernel.npy": npy(header="{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}")}),
        "has shape",
    ),
    "an array under another name": (packed({"embedding/kernel": npy(shape=(MANY,))}), "is no array"),
    "an array of no numbers": (packed({"embedding/kernel.npy": npy(shape=(0, 4), data=b"")}), "holds no numbers"),
    "a header that nests": (packed({"embedding/kernel.npy": npy(header="(" * 3000)}), "damaged"),
    "a header that is code": (packed({"embedding/kernel.npy": npy(header="__import__('os').abort()")}), "damaged"),
    "another algorithm": (
        packed({"embedding/kernel.npy": npy()}, zipfile.ZIP_LZMA)[:60] + b"\xff" * 20,
        "zip is damaged",
    ),
    "integers": (packed({"embedding/kernel.npy": npy(dtype="<i4")}), "holds int32"),
}


@pytest.mark.parametrize("name", NPZ)
def test_a_hostile_npz_is_refused(name: str, tmp_path: Path) -> None:
    raw, words = NPZ[name]
    (tmp_path / "w.npz").write_bytes(raw)
    with pytest.raises(WeightsError, match=words) as caught:
        load_checkpoint(tmp_path / "w.npz")
    assert len(str(caught.value)) < 600


def test_a_real_npz_within_the_limits_still_loads(tmp_path: Path) -> None:
    kernel = npy((2, 2, 3, 4), data=bytes(192))
    (tmp_path / "w.npz").write_bytes(packed({"embedding/kernel.npy": kernel}))
    assert load_checkpoint(tmp_path / "w.npz")["patch_embed.proj.weight"].shape == (4, 3, 2, 2)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
def test_pipes_and_devices_are_no_weights(suffix: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(WeightsError, match="is a pipe or a device, and only regular files are read"):
            load_checkpoint(tmp_path / f"{name}{suffix}")


@pytest.mark.parametrize("file", ["program.json", "weights.safetensors"])
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
def test_a_program_of_pipes_and_devices_is_refused(file: str, kind: str, tmp_path: Path) -> None:
    save_program(tiny_program(), tmp_path / "p")
    path = tmp_path / "p" / file
    path.unlink()
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(ProgramError, match=f"it is {kind}"):
        load_program(tmp_path / "p")


CAPPED = """
import resource, sys
from pathlib import Path
from edgevit.errors import WeightsError
from edgevit.frontends.checkpoint import load_checkpoint
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (100 << 20),) * 2)
for name in sys.argv[1:]:
    try:
        load_checkpoint(Path(name))
    except WeightsError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the address space of a process is limited and measured on Linux")
def test_bombs_are_refused_within_100_mib(tmp_path: Path) -> None:
    kernel = npy((300 << 18,), data=bytes(300 << 20))
    (tmp_path / "w.npz").write_bytes(packed({"embedding/kernel.npy": kernel}))
    torch.save({"w": torch.zeros(300 << 18)}, tmp_path / "stored.pth")
    with zipfile.ZipFile(tmp_path / "stored.pth") as archive:
        (tmp_path / "w.pth").write_bytes(packed({name: archive.read(name) for name in archive.namelist()}))
    paths = [tmp_path / "w.npz", tmp_path / "w.pth"]
    assert all(path.stat().st_size < 1 << 20 for path in paths)
    done = subprocess.run([sys.executable, "-c", CAPPED, *map(str, paths)], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    assert done.stdout.count("it unpacks to 3145") == 2


def test_a_zip_behind_a_torch_file_of_the_older_form_does_not_hide_it(tmp_path: Path) -> None:
    """What torch would read is what is looked at: here the pickles, which would build a bytearray of any size."""
    path, decoy = tmp_path / "w.pth", io.BytesIO()
    with zipfile.ZipFile(decoy, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    torch.save({"w": torch.zeros(1), "x": bytearray(b"x")}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + decoy.getvalue())
    assert zipfile.is_zipfile(path)
    with pytest.raises(WeightsError, match=r"objects of type builtins\.bytearray"):
        load_checkpoint(path)


@pytest.mark.parametrize("start", [b"", b"PK\x03\x04"])
def test_an_end_of_a_zip_on_several_disks_is_a_damaged_file(start: bytes, tmp_path: Path) -> None:
    """Of which Python's zipfile cannot even say whether it is a zip."""
    locator = b"PK\x06\x07" + bytes(12) + struct.pack("<L", 2)
    (tmp_path / "w.pth").write_bytes(start + locator + b"PK\x05\x06" + bytes(18))
    with pytest.raises(zipfile.BadZipFile):
        zipfile.is_zipfile(tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth is (not a readable torch checkpoint|damaged, or no file)"):
        load_checkpoint(tmp_path / "w.pth")
