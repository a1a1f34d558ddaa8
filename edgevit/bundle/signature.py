"""Sign a bundle and check its signature: OpenSSF model signing with an elliptic-curve key, by that project's library.

The signature is one file beside the bundle, over the name and SHA-256 of every file in it, `manifest.json` too; the
same one is for the folder and for its zip. Other tools of that format read it, and what they signed is read here.
Nobody is called: keys are files, and no transparency log is asked.
"""

from __future__ import annotations

import base64
import binascii
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import RuntimeMissingError, SignatureError
from edgevit.schema.manifest import Bundle
from edgevit.schema.manifest_file import MANIFEST, with_faults
from edgevit.util import strict_json
from edgevit.util.atomic import scratch
from edgevit.util.limits import SETTINGS_BYTES, LimitError, read_regular
from edgevit.util.paths import is_there

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

SUFFIX = ".sig"
CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
MAKE_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out my.key; openssl ec -in my.key -pubout -out my.pub"
ALLOWED = f"allowed: an elliptic-curve key of {', '.join(CURVES.values())} in PEM; make one: {MAKE_KEY}"
_SHOWN = 300


def beside(path: Path) -> Path:
    """Return where the signature of a bundle lies, whether its folder or its zip is given."""
    path = path.resolve() if path.name in ("", "..") else path  # the folder that one is in
    return path.with_name(path.name.removesuffix(".zip") + SUFFIX)


def sign(bundle: Bundle, key: Path) -> bytes:
    """Return the signature of an opened bundle by a private key.

    Raises:
        RuntimeMissingError: the extra `sign` is not installed.
        SignatureError: the key cannot sign; the message says which can.
    """
    signing, hashing = _library("signing"), _library("hashing")
    _check_key(key, private=True)
    whole = hashing.Config().use_file_serialization(hashing_algorithm="sha256")
    whole = whole.set_ignored_paths(paths=[], ignore_git_paths=False)
    with scratch() as folder, _quiet():
        written = folder / f"bundle{SUFFIX}"
        config = signing.Config().set_hashing_config(whole).use_elliptic_key_signer(private_key=key)
        try:
            config.sign(bundle.folder, written)
        except UnicodeEncodeError:
            raise SignatureError(
                "the format of signatures takes no folder whose name is not UTF-8; rename it, or sign its .zip"
            ) from None
        return written.read_bytes()


def check(bundle: Bundle, key: Path, signature: Path) -> None:
    """Check that a signature of an opened bundle is by the owner of a public key, and covers every file.

    Raises:
        RuntimeMissingError: the extra `sign` is not installed.
        SignatureError: there is no signature, it is none, or it does not hold: another key, or changed, extra or
            missing files; or the key cannot verify.
    """
    verifying = _library("verifying")
    _check_key(key, private=False)
    data = _read(signature)
    try:
        with _quiet():
            verifying.Config().use_elliptic_key_verifier(public_key=key).verify(bundle.folder, signature)
    except Exception as error:  # of the library, of cryptography, or of what reads the JSON
        raise SignatureError(f"{signature} does not hold for {bundle.manifest.name}: {_why(error)}") from None
    left_out = sorted({MANIFEST, *(file.path for file in bundle.manifest.files)} - _signed(data))
    if left_out:
        raise SignatureError(with_faults(f"{signature} leaves out what is in {bundle.manifest.name}:", left_out))


def _check_key(path: Path, *, private: bool) -> None:
    """Refuse a key that cannot do what it is given for, in words that say which can."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        raw = read_regular(path, SETTINGS_BYTES)
    except (OSError, LimitError) as error:
        raise SignatureError(f"the key {path} cannot be read: {error}") from None
    is_private = b"PRIVATE KEY-----" in raw
    if is_private != private:
        wants = "the private key signs" if private else "a public key verifies, and a private one stays with its owner"
        got = "a private key" if is_private else "no private key"
        raise SignatureError(f"{path} is {got}: {wants}; {ALLOWED}")
    try:
        key: Any = serialization.load_pem_private_key(raw, None) if private else serialization.load_pem_public_key(raw)
    except TypeError:
        raise SignatureError(
            f"the key {path} is encrypted; decrypt it where nobody else reads it: openssl ec -in {path} -out PLAIN"
        ) from None
    except Exception as error:  # cryptography raises ValueError, UnsupportedAlgorithm and others
        raise SignatureError(f"the key {path} cannot be read ({str(error)[:_SHOWN]}); {ALLOWED}") from None
    kinds = ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey
    if not isinstance(key, kinds) or key.curve.name not in CURVES:
        raise SignatureError(f"the key {path} is not supported ({_kind(key)}); {ALLOWED}")


def _kind(key: ec.EllipticCurvePrivateKey | Any) -> str:
    return f"curve {key.curve.name}" if hasattr(key, "curve") else type(key).__name__.removesuffix("Key")


def _read(path: Path) -> Mapping[str, Any]:
    """Return the signature's JSON, within the limits on what others wrote."""
    if not is_there(path):
        raise SignatureError(f"it is not signed: {path} does not exist; name another with --signature")
    try:
        data = strict_json.read_json(path)
    except (OSError, ValueError) as error:
        raise SignatureError(f"{path} is no signature: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("dsseEnvelope"), dict):
        raise SignatureError(f"{path} is no signature in the format of OpenSSF model signing")
    return data


def _signed(data: Mapping[str, Any]) -> set[str]:
    """Return the files that a signature, which holds, was made over."""
    try:
        statement = json.loads(base64.b64decode(data["dsseEnvelope"]["payload"]))
        return {resource["name"] for resource in statement["predicate"]["resources"]}
    except (KeyError, TypeError, ValueError, binascii.Error):
        return set()


def _why(error: Exception) -> str:
    """Return what the library found, in words for who does not know it."""
    said = str(error)
    if said.startswith("Key mismatch"):
        return "it was made with another key"
    if type(error).__name__ == "InvalidSignature":
        return "it was not made with this key, or was changed"
    found = said.partition("Signature mismatch: ")[2].strip("[]\"'")
    return (found or said or type(error).__name__)[:_SHOWN]


def _library(module: str) -> Any:
    try:
        import importlib

        return importlib.import_module(f"model_signing.{module}")
    except ImportError as error:
        raise RuntimeMissingError(
            f"signatures need the library of OpenSSF model signing ({error}); install it: pip install 'edgevit[sign]'"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Let pass that the library leaves the file it reads to the garbage collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
