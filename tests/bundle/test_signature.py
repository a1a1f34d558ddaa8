"""A signature holds for the whole bundle by the owner of a key, and for nothing else; every fault is one error."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevit.api.verify import verify
from edgevit.bundle import signature
from edgevit.bundle.read import open_bundle
from edgevit.errors import BundleError, RuntimeMissingError, SignatureError
from tests.bundles import rehash, sample_bundle
from tests.keys import write_key


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny`, `tiny.zip`, `tiny.sig`, `my.key` and `my.pub`."""
    place = tmp_path_factory.mktemp("signed")
    sample_bundle(place / "tiny")
    write_key(place / "my.key")
    with open_bundle(place / "tiny") as bundle:
        (place / "tiny.sig").write_bytes(signature.sign(bundle, place / "my.key"))
    return place


@pytest.fixture
def place(signed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / "place"))


def check(place: Path, bundle: str = "tiny", key: str = "my.pub", sig: str = "tiny.sig") -> None:
    with open_bundle(place / bundle) as opened:
        signature.check(opened, place / key, place / sig)


def test_one_signature_is_for_the_folder_and_for_the_zip(signed: Path) -> None:
    check(signed)
    check(signed, bundle="tiny.zip")
    assert signature.beside(signed / "tiny.zip") == signature.beside(signed / "tiny") == signed / "tiny.sig"


@pytest.mark.parametrize(("inside", "given"), [(".", "."), ("golden", ".."), ("golden", "../.")])
def test_it_lies_beside_the_folder_that_one_is_in(
    signed: Path, monkeypatch: pytest.MonkeyPatch, inside: str, given: str
) -> None:
    monkeypatch.chdir(signed / "tiny" / inside)
    assert signature.beside(Path(given)).resolve() == (signed / "tiny.sig").resolve()
    assert verify(given, key=signed / "my.pub").signature == "holds"


def test_the_zip_signs_what_the_folder_is(place: Path) -> None:
    with open_bundle(place / "tiny.zip") as bundle:
        (place / "tiny.sig").write_bytes(signature.sign(bundle, place / "my.key"))
    check(place)


@pytest.mark.parametrize("kind", ["P-384", "P-521"])
def test_the_other_curves_sign_too(place: Path, kind: str) -> None:
    write_key(place / "other.key", kind)
    with open_bundle(place / "tiny") as bundle:
        (place / "other.sig").write_bytes(signature.sign(bundle, place / "other.key"))
    check(place, key="other.pub", sig="other.sig")


def test_the_projects_own_tool_reads_it(signed: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "model_signing", "verify", "key", str(signed / "tiny")]
    command += ["--signature", str(signed / "tiny.sig"), "--public_key", str(signed / "my.pub")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_the_projects_own_tool_signed_is_read(place: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "model_signing", "sign", "key", str(place / "tiny")]
    command += ["--signature", str(place / "theirs.sig"), "--private_key", str(place / "my.key")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check(place, sig="theirs.sig")


def changed(folder: Path) -> None:
    (folder / "golden/real.logits.npy").write_bytes((folder / "golden/real.logits.npy").read_bytes()[:-1] + b"\x01")
    rehash(folder)


def extra(folder: Path) -> None:
    (folder / "more.txt").write_text("more")
    data = json.loads((folder / "manifest.json").read_text())
    data["files"].append({"path": "more.txt", "bytes": 4, "sha256": "0" * 64})
    (folder / "manifest.json").write_text(json.dumps(data))
    rehash(folder)


def missing(folder: Path) -> None:
    (folder / "report.html").unlink(missing_ok=True)
    (folder / "requirements.txt").unlink()
    data = json.loads((folder / "manifest.json").read_text())
    data["files"] = [file for file in data["files"] if file["path"] != "requirements.txt"]
    (folder / "manifest.json").write_text(json.dumps(data))
    rehash(folder)


@pytest.mark.parametrize(
    ("change", "named"), [(changed, "real.logits"), (extra, "more.txt"), (missing, "requirements")]
)
def test_a_bundle_whose_hashes_were_written_anew_does_not_pass(
    place: Path, change: Callable[[Path], None], named: str
) -> None:
    """Its hashes hold: only the signature tells."""
    change(place / "tiny")
    with pytest.raises(SignatureError, match="does not hold for tiny") as caught:
        check(place)
    assert named in str(caught.value)


def test_a_file_without_a_line_in_the_manifest_does_not_pass_either(place: Path) -> None:
    (place / "tiny" / ".gitignore").write_text("x")
    with pytest.raises(BundleError, match="not listed"):
        check(place)


def test_a_signature_that_leaves_files_out_does_not_pass(place: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "model_signing", "sign", "key", str(place / "tiny")]
    command += ["--signature", str(place / "part.sig"), "--private_key", str(place / "my.key")]
    command += ["--ignore-paths", str(place / "tiny" / "manifest.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(SignatureError, match="leaves out what is in tiny:\n  - manifest.json"):
        check(place, sig="part.sig")


def test_another_key_does_not_pass(place: Path) -> None:
    write_key(place / "other.key")
    with pytest.raises(SignatureError, match="it was made with another key"):
        check(place, key="other.pub")
    # Also where the signature claims to be of that key.
    data, other = (json.loads((place / "tiny.sig").read_text()) for _ in range(2))
    with open_bundle(place / "tiny") as bundle:
        other = json.loads(signature.sign(bundle, place / "other.key"))
    data["verificationMaterial"] = other["verificationMaterial"]
    (place / "tiny.sig").write_text(json.dumps(data))
    with pytest.raises(SignatureError, match="not made with this key, or was changed"):
        check(place, key="other.pub")


@pytest.mark.parametrize(("kind", "said"), [("rsa", "RSA"), ("ed25519", "Ed25519"), ("secp256k1", "curve secp256k1")])
def test_a_key_of_another_kind_is_one_error(place: Path, kind: str, said: str) -> None:
    write_key(place / "other.key", kind)
    with open_bundle(place / "tiny") as bundle, pytest.raises(SignatureError, match=said) as caught:
        signature.sign(bundle, place / "other.key")
    assert "P-256, P-384, P-521" in str(caught.value) and "openssl" in str(caught.value)
    with pytest.raises(SignatureError, match=said):
        check(place, key="other.pub")


def test_keys_that_cannot_be_used_say_why(place: Path) -> None:
    write_key(place / "locked.key", password=b"secret")
    (place / "text.key").write_text("-----BEGIN PRIVATE KEY-----\nno\n-----END PRIVATE KEY-----\n")
    (place / "text.pub").write_bytes(b"\xff\xfe")
    faults = {"locked.key": "is encrypted", "text.key": "cannot be read", "gone.key": "cannot be read"}
    faults |= {"my.pub": "no private key: the private key signs", "tiny": "cannot be read"}
    with open_bundle(place / "tiny") as bundle:
        for name, said in faults.items():
            with pytest.raises(SignatureError, match=said):
                signature.sign(bundle, place / name)
    for name, said in {"my.key": "a public key verifies", "text.pub": "cannot be read", "no": "cannot be read"}.items():
        with pytest.raises(SignatureError, match=said):
            check(place, key=name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "it is not signed: .*tiny.sig does not exist"),
        ("", "is no signature"),
        ("{", "is no signature"),
        ("[]", "is no signature in the format"),
        ('{"dsseEnvelope": {}}', "does not hold"),
        (
            '{"dsseEnvelope": {"payload": "!", "signatures": []}, "mediaType": "x", "verificationMaterial": 3}',
            "not hold",
        ),
        ('{"a": 1, "a": 2}', "there twice"),
    ],
)
def test_what_is_no_signature_is_one_error(place: Path, content: str | None, said: str) -> None:
    (place / "tiny.sig").unlink()
    if content is not None:
        (place / "tiny.sig").write_text(content)
    with pytest.raises(SignatureError, match=said) as caught:
        check(place)
    assert len(str(caught.value)) < 700


def test_any_byte_of_a_signature_counts(place: Path) -> None:
    raw = (place / "tiny.sig").read_bytes()
    for place_of in range(0, len(raw), len(raw) // 24):
        damaged = bytes([raw[place_of] ^ 1])
        (place / "tiny.sig").write_bytes(raw[:place_of] + damaged + raw[place_of + 1 :])
        with pytest.raises(SignatureError):
            check(place)


def test_without_the_library_it_is_said_what_to_install(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model_signing", "model_signing.signing", "model_signing.verifying", "model_signing.hashing"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeMissingError, match=r"edgevit\[sign\]"):
        check(place)
