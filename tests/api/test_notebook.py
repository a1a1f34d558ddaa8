"""docs/notebook.ipynb runs from the first cell to the last, and its values show themselves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"
SHOWN = ("program", "bundle", "answer", "measurement", "report")
# In a process of its own: what the kernel's libraries warn of is no fault of edgevit's.
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read("notebook.ipynb", 4)
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
nbformat.write(notebook, "done.ipynb")
"""


def cells(path: Path) -> list[dict[str, Any]]:
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


def test_it_is_kept_without_outputs() -> None:
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(NOTEBOOK))


def test_it_runs_and_shows_tables_and_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    shutil.copy(NOTEBOOK, folder)
    (tmp_path / "calibration").symlink_to(NOTEBOOK.parents[1] / "calibration")
    done = subprocess.run([sys.executable, "-c", EXECUTE], cwd=folder, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-3000:]
    executed = {"".join(cell["source"]).split("\n")[-1]: cell["outputs"] for cell in cells(folder / "done.ipynb")}
    for name in SHOWN:
        (output,) = [each for each in executed[name] if each["output_type"] == "execute_result"]
        assert '<div class="edgevit-shown">' in "".join(output["data"]["text/html"]), name
    streams = [each for outputs in executed.values() for each in outputs if each["output_type"] == "stream"]
    assert not [each for each in streams if each["name"] == "stdout"]
    assert (folder / "out" / "demo.html").is_file()
