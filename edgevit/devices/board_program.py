"""The Python measuring program: what runs a bundle's model, in a process of its own within limits.

`python -m edgevit.devices.board_program REQUEST`, in a folder. It measures the bundle, or runs its golden inputs. At
the desk `edgevit/devices/local` starts it; to a board `edgevit/devices/python_program.py` sends it with the modules it
imports, the bundle and images that are ready for the model. So the same code measures on every device, within the same
limits (`edgevit/devices/confined.py`), and a board needs numpy and the runtime only.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.backends import MODULES
from edgevit.bundle.read import open_bundle, verify_bundle
from edgevit.devices import confined
from edgevit.devices.local import loaded, measure_here
from edgevit.devices.request import IMAGES, ProfileRequest
from edgevit.errors import BundleError, EdgevitError
from edgevit.schema.manifest import Bundle
from edgevit.schema.measurement import ImagesUsed
from edgevit.util import strict_json


def main(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Do what is asked for: {"measurement": data} or {"golden": data}, or {"error": message, "code": exit code}.

    The request: "bundle" (its folder), "backend" (the module), "threads", and to measure it how the images were "used",
    "runs", "cpus" and "effort"; without "used" the golden inputs are run.
    """
    try:
        with open_bundle(folder / request["bundle"]) as bundle:
            if request["backend"] is not None:  # whoever asks may know a runtime that the table here does not list
                MODULES.setdefault(bundle.manifest.backend, request["backend"])
            return _measured(bundle, request, folder) if "used" in request else _verified(bundle, request)
    except EdgevitError as error:
        return {"error": str(error), "code": error.exit_code}
    except Exception as error:  # the runtimes' exceptions share no base class of their own
        told = f"{type(error).__name__}: {error}"[:2000]
        subject = request.get("subject", "the bundle's model")
        message = f"{subject} does not run as its manifest says ({told}); it is damaged or means harm: build it again"
        return {"error": message, "code": BundleError.exit_code}


def _measured(bundle: Bundle, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    faults: list[str] = []
    used = strict_json.from_data(ImagesUsed, request["used"], faults)
    assert used is not None, faults
    asked = ProfileRequest(
        bundle=bundle,
        images=np.load(folder / IMAGES, allow_pickle=False),
        used=used,
        runs=request["runs"],
        threads=request["threads"],
        cpus=None if request["cpus"] is None else tuple(request["cpus"]),
        baselines=tuple(request.get("baselines", ())),
        effort=request.get("effort"),
    )
    return {"measurement": strict_json.to_data(measure_here(asked))}


def _verified(bundle: Bundle, request: dict[str, Any]) -> dict[str, Any]:
    with loaded(bundle, request["threads"]) as runner:
        return {"golden": strict_json.to_data(verify_bundle(bundle, runner))}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # whoever started it can then end it with all that it started
    confined.hold(asked["allowed"])
    confined.draw_on(asked.get("terminal"))
    answer = main(asked, Path.cwd())
    if "answer" in asked:  # apart from what native code may print
        strict_json.write_atomic(Path.cwd() / asked["answer"], json.dumps(answer, ensure_ascii=False))
    else:
        print(json.dumps(answer))
