from __future__ import annotations

import json
import subprocess
import sys

from click.testing import CliRunner

from edgevit.cli import cli
from edgevit.frontends.catalogue import read_catalogue


def models(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["models", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_it_lists_what_fits() -> None:
    output = models()
    for entry in read_catalogue().models:
        assert (f"\n{entry.name} " in output) == entry.fits


def test_a_part_of_the_name_filters() -> None:
    rows = models("DeiT3").strip().splitlines()[1:-2]
    assert rows and all("deit3" in row for row in rows)


def test_all_shows_the_reason() -> None:
    assert "vit_relpos_small_patch16_224" not in models("relpos")
    assert "--all relpos" in models("relpos")
    assert "relative position" in models("--all", "relpos")


def test_a_name_that_is_nowhere_offers_the_nearest() -> None:
    assert "nearest names: deit_tiny_patch16_224" in models("deit_tny_patch16_224")


def test_json_holds_the_same_rows() -> None:
    document = json.loads(models("--json", "--all", "deit"))
    names = [e.name for e in read_catalogue().models if "deit" in e.name]
    assert [row["name"] for row in document["models"]] == names
    assert document["timm"] == read_catalogue().timm


def test_it_loads_neither_torch_nor_timm_nor_onnx() -> None:
    code = (
        "import sys\nfrom edgevit.cli import main\nmain(['models'])\n"
        "print(*({'torch', 'timm', 'onnx', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr.strip() == ""
    assert "deit_tiny_patch16_224" in run.stdout
