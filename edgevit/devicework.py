"""What a board runs of edgevit: `python -m edgevit.devicework REQUEST` measures an opened bundle, as at the desk.

`edgevit/onboard.py` sends it there with the modules it imports, the bundle and images that are ready for the model, so
that the same code measures on every device and a board needs numpy and the runtime only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgevit import ondevice, serial
from edgevit.bundle.read import open_bundle
from edgevit.errors import EdgevitError
from edgevit.measurespec import ImagesUsed

BUNDLE, IMAGES, ANSWER = "bundle", "images.npy", "answer.json"


def main(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Measure as asked: {"measurement": data}, or {"error": message} for what edgevit refuses on purpose."""
    faults: list[str] = []
    used = serial.from_data(ImagesUsed, request["used"], faults)
    assert used is not None, faults
    try:
        with open_bundle(folder / BUNDLE) as bundle:
            pixels = np.load(folder / IMAGES, allow_pickle=False)
            measurement = ondevice.profile_prepared(
                bundle, pixels, used, runs=request["runs"], threads=request["threads"], cpus=request["cpus"]
            )
    except EdgevitError as error:
        return {"error": str(error)}
    return {"measurement": serial.to_data(measurement)}


if __name__ == "__main__":
    answer = main(json.loads(sys.argv[1]), Path.cwd())
    serial.write_atomic(Path.cwd() / ANSWER, json.dumps(answer))
