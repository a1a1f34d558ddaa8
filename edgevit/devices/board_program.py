"""Measure an opened bundle, as at the desk: what a board runs of edgevit.

`python -m edgevit.devices.board_program REQUEST`. `edgevit/devices/python_program.py` sends it there with the modules
it imports, the bundle and images that are ready for the model, so that the same code measures on every device and a
board needs numpy and the runtime only.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.bundle.read import open_bundle
from edgevit.devices.local import LocalMachine
from edgevit.devices.request import ProfileRequest
from edgevit.errors import EdgevitError
from edgevit.schema.measurement import ImagesUsed
from edgevit.util import strict_json

BUNDLE, IMAGES = "bundle", "images.npy"


def main(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Measure as asked: {"measurement": data}, or {"error": message} for what edgevit refuses on purpose."""
    faults: list[str] = []
    used = strict_json.from_data(ImagesUsed, request["used"], faults)
    assert used is not None, faults
    cpus = None if request["cpus"] is None else tuple(request["cpus"])
    try:
        with open_bundle(folder / BUNDLE) as bundle:
            pixels = np.load(folder / IMAGES, allow_pickle=False)
            asked = ProfileRequest(
                bundle=bundle, images=pixels, used=used, runs=request["runs"], threads=request["threads"], cpus=cpus
            )
            measurement = LocalMachine().measure(asked)
    except EdgevitError as error:
        return {"error": str(error)}
    return {"measurement": strict_json.to_data(measurement)}


if __name__ == "__main__":
    os.setpgid(0, 0)  # whoever started it can then end it with all that it started
    print(json.dumps(main(json.loads(sys.argv[1]), Path.cwd())))
