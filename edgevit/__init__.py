"""Compile Vision Transformers into small, input-adaptive, quantized bundles for edge devices.

A model becomes a Program (its structure and its float weights), a Program a bundle (a folder and a .zip that a device
runs), and a bundle is measured where it is to run::

    import edgevit

    program = edgevit.load("deit_tiny_patch16_224", weights="deit_tiny.safetensors")
    smaller = edgevit.compress(program, "photos/", macs=0.8)
    bundle = edgevit.build(smaller, target="x86-64-onnxruntime", calibration="photos/")
    answer = bundle.run("cat.jpg")
    measurement = edgevit.profile(bundle, "photos/", device="ssh://pi@raspberrypi.local")
    edgevit.report(bundle, measurement, html="report.html")

Functions:
    load        a model's name, checkpoint or folder -> Program
    save        Program -> folder
    compress    Program -> a smaller Program, in minutes, from a few images without labels
    train       Program -> a smaller Program, by training it on a data set
    predict     what a build would cost, without building
    build       Program -> Bundle, verified
    open_bundle folder or .zip -> Bundle
    verify      check a bundle's files, and with run=True what it computes
    sign        put your name to a bundle
    profile     measure a bundle here, on a board over ssh, or on an emulated processor -> Measurement
    report      bundles and measurements -> Report, and one HTML page
    compare     builds and measurements side by side -> Comparison, held against limits
    models      the models that `load` takes
    targets     the targets that `build` takes
    target      one target by name or TOML file
    diagnose    what this machine can build and run

Types for annotations: Answer, Bundle, Catalogue, Comparison, Health, Measurement, Prediction, Preprocessing, Program,
Report, Target, Trained, Verified. In a notebook Answer, Bundle, Measurement, Program and Report show tables and
pictures.

Images are a path (a file, folder, .tar, .zip, .npz or TOML list), a list of paths, or a uint8 RGB array
`[n, height, width, 3]` of the model's own image size. Every error raised on purpose is an `edgevit.EdgevitError`; the
classes are in `edgevit.errors`. Messages go to the logger "edgevit" and progress bars to a terminal only.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "build",
    "compare",
    "compress",
    "diagnose",
    "load",
    "models",
    "open_bundle",
    "predict",
    "profile",
    "report",
    "save",
    "sign",
    "target",
    "targets",
    "train",
    "verify",
]

if TYPE_CHECKING:
    from edgevit.api.build import Prediction as Prediction
    from edgevit.api.build import build as build
    from edgevit.api.build import predict as predict
    from edgevit.api.bundle import Answer as Answer
    from edgevit.api.bundle import Bundle as Bundle
    from edgevit.api.bundle import open_bundle as open_bundle
    from edgevit.api.compare import Comparison as Comparison
    from edgevit.api.compare import compare as compare
    from edgevit.api.doctor import Health as Health
    from edgevit.api.doctor import diagnose as diagnose
    from edgevit.api.label_free import compress as compress
    from edgevit.api.load import Preprocessing as Preprocessing
    from edgevit.api.load import Program as Program
    from edgevit.api.load import load as load
    from edgevit.api.load import save as save
    from edgevit.api.models import Catalogue as Catalogue
    from edgevit.api.models import models as models
    from edgevit.api.profile import Measurement as Measurement
    from edgevit.api.profile import profile as profile
    from edgevit.api.report import Report as Report
    from edgevit.api.report import report as report
    from edgevit.api.sign import sign as sign
    from edgevit.api.targets import Target as Target
    from edgevit.api.targets import target as target
    from edgevit.api.targets import targets as targets
    from edgevit.api.train import train as train
    from edgevit.api.trained import Trained as Trained
    from edgevit.api.verify import Verified as Verified
    from edgevit.api.verify import verify as verify
    from edgevit.errors import EdgevitError as EdgevitError

# Where each public name lies; it is imported when it is first used, so that `import edgevit` is light.
_PLACES = {
    **dict.fromkeys(("build", "predict", "Prediction"), "edgevit.api.build"),
    **dict.fromkeys(("open_bundle", "Answer", "Bundle"), "edgevit.api.bundle"),
    **dict.fromkeys(("compare", "Comparison"), "edgevit.api.compare"),
    "compress": "edgevit.api.label_free",
    **dict.fromkeys(("diagnose", "Health"), "edgevit.api.doctor"),
    **dict.fromkeys(("models", "Catalogue"), "edgevit.api.models"),
    **dict.fromkeys(("target", "targets", "Target"), "edgevit.api.targets"),
    **dict.fromkeys(("load", "save", "Preprocessing", "Program"), "edgevit.api.load"),
    **dict.fromkeys(("profile", "Measurement"), "edgevit.api.profile"),
    **dict.fromkeys(("report", "Report"), "edgevit.api.report"),
    "sign": "edgevit.api.sign",
    "train": "edgevit.api.train",
    "Trained": "edgevit.api.trained",
    **dict.fromkeys(("verify", "Verified"), "edgevit.api.verify"),
    "EdgevitError": "edgevit.errors",
}


class _Package(ModuleType):
    """This package: public names are found on demand, and none is hidden by the room of its name (`edgevit.build`)."""

    def __getattr__(self, name: str) -> object:
        if name not in _PLACES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        try:
            value = getattr(importlib.import_module(_PLACES[name]), name)
        except ModuleNotFoundError as error:  # `help` and completion ask for every name
            raise AttributeError(f"edgevit.{name} needs {error.name}, which is not installed") from error
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _PLACES or not isinstance(value, ModuleType):  # the import of a room sets it here
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*_PLACES, *(name for name in vars(self) if name.startswith("__")), "errors"})


sys.modules[__name__].__class__ = _Package
