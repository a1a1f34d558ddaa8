"""Ask a runtime for the times of branches, in a fresh process: `python -m edgevit.measure.trace REQUEST`.

Its own counters cost time, so these figures never enter the latency, and an arena belongs to its process.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.measure.branch_times import Trace
from edgevit.util import strict_json


def main(request: dict[str, Any]) -> Trace:
    """Trace as the request says: the `backend` module, `model` and `images` (files), branches, settings."""
    images = np.load(request.pop("images"), allow_pickle=False)
    backend = importlib.import_module(request.pop("backend"))
    trace: Trace = backend.trace_branches(Path(request.pop("model")), images, **request)
    return trace


if __name__ == "__main__":
    print(json.dumps(strict_json.to_data(main(json.loads(sys.argv[1])))))
