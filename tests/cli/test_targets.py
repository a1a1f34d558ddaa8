from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgevit.cli import main
from edgevit.schema.budget import BUDGETS
from edgevit.schema.target import load_target
from edgevit.util.resources import shipped


def test_a_target_is_exported_to_a_file_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["targets", "--export", "rpi5-onnxruntime"]) == 0
    assert main(["targets", "--export", "rpi5-onnxruntime", "-o", "my board.toml"]) == 0
    assert "edgevit build --target 'my board.toml'\n" in capsys.readouterr().out
    assert (tmp_path / "rpi5-onnxruntime.toml").read_bytes() == (tmp_path / "my board.toml").read_bytes()
    assert load_target("my board.toml") == load_target("rpi5-onnxruntime")
    assert main(["targets", "my board.toml"]) == 0


@pytest.mark.parametrize(
    ("name", "keys"),
    [("rpi5-onnxruntime", {*BUDGETS}), ("cortex-a72-tvm", {*BUDGETS, "libc", "cc", "sysroot"})],
)
def test_an_exported_target_shows_what_may_be_set(name: str, keys: set[str], tmp_path: Path) -> None:
    """As comments; uncommented they are read."""
    path = tmp_path / "board.toml"
    assert main(["targets", "--export", name, "-o", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^# (\w+) = ", text, re.MULTILINE)
    assert set(found) == keys
    path.write_text(re.sub(r"^# (\w+_\w+ = \d+).*", r"\1", text, flags=re.MULTILINE), encoding="utf-8")
    own = load_target(path)
    assert (own.ram_mb, own.flash_mb, own.latency_ms, own.drop_points) == (64, 8, 30, 1)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--export", "rpi5-onnxruntim"], 14, "nearest: rpi5-onnxruntime"),
        (["--export", "rpi5-onnxruntime", "-o", "board.txt"], 16, "board.txt does not end in .toml"),
        (["--export", "rpi5-onnxruntime", "-o", "there.toml"], 16, "there.toml already exists"),
        (["--export", "rpi5-onnxruntime", "-o", "no/such.toml"], 16, "cannot write no/such.toml"),
        (["--export", "rpi5-onnxruntime", "--json"], 2, "give it alone"),
        (["rpi5-onnxruntime", "-o", "x.toml"], 2, "-o is the file of --export"),
        (["--export", "there.toml"], 14, "takes the name of a target"),
    ],
)
def test_what_cannot_be_exported_is_one_error(
    arguments: list[str],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.toml").write_bytes((shipped("targets") / "rpi5-onnxruntime.toml").read_bytes())
    assert main(["targets", *arguments]) == status
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.toml"]
