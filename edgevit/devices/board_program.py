"""Measure an opened bundle, as at the desk: what a board runs of edgevit.

`python -m edgevit.devices.board_program REQUEST`. `edgevit/devices/ssh/python_board.py` sends it there with the modules
it imports, the bundle and images that are ready for the model, so that the same code measures on every device and a
board needs numpy and the runtime only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.bundle.read import open_bundle
from edgevit.devices import local
from edgevit.errors import EdgevitError
from edgevit.schema.measurement import ImagesUsed
from edgevit.util import strict_json

BUNDLE, IMAGES, ANSWER = "bundle", "images.npy", "answer.json"


def main(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Measure as asked: {"measurement": data}, or {"error": message} for what edgevit refuses on purpose."""
    faults: list[str] = []
    used = strict_json.from_data(ImagesUsed, request["used"], faults)
    assert used is not None, faults
    try:
        with open_bundle(folder / BUNDLE) as bundle:
            pixels = np.load(folder / IMAGES, allow_pickle=False)
            measurement = local.profile_prepared(
                bundle, pixels, used, runs=request["runs"], threads=request["threads"], cpus=request["cpus"]
            )
    except EdgevitError as error:
        return {"error": str(error)}
    return {"measurement": strict_json.to_data(measurement)}


if __name__ == "__main__":
    answer = main(json.loads(sys.argv[1]), Path.cwd())
    strict_json.write_atomic(Path.cwd() / ANSWER, json.dumps(answer))
