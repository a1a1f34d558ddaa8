"""Every path that a command takes: one that can be no path is one error, and no output lies in a bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from edgevit.cli import cli, main
from tests.bundles import sample_bundle
from tests.keys import write_key

# What each command needs beside the path that is tried; `{x}` are files that there are.
REST = {
    "build": ["{program}", "--target", "x86-64-onnxruntime", "--calibration", "{photo}", "-o", "{new}"],
    "compress": ["{program}", "--data", "{photo}", "--macs", "0.5", "-o", "{new}"],
    "profile": ["{bundle}", "--runs", "2"],
    "report": ["{bundle}"],
    "compare": ["{bundle}", "{other}"],
    "verify": ["{bundle}"],
    "sign": ["{bundle}", "--key", "{key}", "-o", "{new}"],
    "targets": ["--export", "rpi5-onnxruntime"],
}
# Names that are no files but may be paths of them.
NAMED = ("model", "original", "target", "baseline")


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            if isinstance(command, click.Group):
                yield from commands(command, (*words, name))
            else:
                yield (*words, name), command


PATHS = [
    pytest.param(words, parameter, id=f"{' '.join(words)} {parameter.name}")
    for words, command in commands(cli)
    for parameter in command.params
    if isinstance(parameter.type, click.Path) or parameter.name in NAMED
]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("paths")
    for name in ("bundle", "other"):
        sample_bundle(root / name, depth=1 if name == "bundle" else 2)
    write_key(root / "my.key")
    (root / "loop").symlink_to("loop")
    there = {name: str(root / name) for name in ("bundle", "other", "program", "photo", "new", "loop")}
    return {**there, "key": str(root / "my.key")}


@pytest.mark.parametrize(("words", "parameter"), PATHS)
@pytest.mark.parametrize("wrong", ["x" * 300, "{loop}/x", "{bundle}/manifest.json/x"])
def test_what_can_be_no_path_is_one_error(
    words: tuple[str, ...],
    parameter: click.Parameter,
    wrong: str,
    there: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    rest = list(REST.get(words[-1], ()))
    if isinstance(parameter, click.Argument):
        given = [*words, wrong, *rest[1:]]
    else:
        given = [*words, *rest, parameter.opts[-1], wrong]
    assert main([word.format(**there) for word in given]) not in (0, 1)  # a bug would be raised
    assert capsys.readouterr().err.count("edgevit: error: ") == 1
    assert not list(tmp_path.iterdir())


def test_names_that_are_no_text_are_no_fault(
    there: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files may be called by any bytes; where a page or JSON tells of them, what cannot be read is one sign."""
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"b\xff")
    shutil.copytree(there["bundle"], name)
    shutil.copy(f"{there['bundle']}.zip", f"{name}.zip")
    for given in (
        ["report", name, there["other"], "--folder", "pages"],
        ["compare", name, there["other"], "--html", "page.html"],
        ["verify", f"{name}.zip", "--run"],
    ):
        assert main(given) == 0, capsys.readouterr().err
    assert "b\ufffd" in Path("page.html").read_text(encoding="utf-8")
    assert main(["sign", name, "--key", there["key"]]) == 24
    said = capsys.readouterr().err
    assert main(["verify", name, "--run"]) == 19
    assert "opens no path that is not UTF-8; move the bundle" in capsys.readouterr().err
    assert "whose name is not UTF-8; rename it, or sign its .zip" in said


@pytest.mark.parametrize(
    ("given", "force"),
    [
        (["sign", "{bundle}", "--key", "{key}", "-o", "{bundle}/a.sig"], "--force"),
        (["profile", "{bundle}", "--runs", "2", "-o", "{bundle}/m.json"], "--force"),
        (["report", "{bundle}", "--html", "{bundle}/report.html"], "--force"),
        (["report", "{bundle}", "--figures", "{bundle}/golden/figures"], None),
        (["report", "{bundle}", "{other}", "--folder", "{bundle}/pages"], "--force"),
        (["compare", "{bundle}", "{other}", "--html", "{other}/c.html"], "--force"),
        (["targets", "--export", "rpi5-onnxruntime", "-o", "{bundle}/t.toml"], None),
        (["targets", "--log-file", "{bundle}/log"], None),
    ],
)
def test_no_output_lies_in_a_bundle(
    given: list[str], force: str | None, there: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Which would count as damaged from then on."""
    for more in ([], [force]) if force else ([],):
        assert main([*(word.format(**there) for word in given), *more]) == 16
        assert "lies in the bundle" in capsys.readouterr().err
    assert main(["verify", there["bundle"]]) == main(["verify", there["other"]]) == 0
