from __future__ import annotations

from pathlib import Path

from benchmarks.usdc_report import Row, draw, parts, spread, table

TOPS = {"256": 0.90, "64": 0.90, "32": 0.90, "8": 0.91, "2": 0.91, "1": 0.92}


def row(name: str, **changed: object) -> Row:
    tops = TOPS if name != "dense" and "static" not in name else {"1": 0.93}
    made: Row = {
        "name": name,
        "images": 10000,
        "top1": tops,
        "macs": {batch: 0.5 for batch in tops},
        "static_macs": 0.66,
        "weights": 660,
        "dense_weights": 1000,
        "bound_bytes": 650,
        "dense_bound_bytes": 1000,
        "heads": 20,
        "neurons": 3000,
        "branches": 22,
        "gates_that_vary": 7,
        "images_per_s": {"recover": 150.0},
        "recipe": {"threshold_images": 1000, "epochs_recover": 4},
    }
    return made | changed


ROWS = [
    row("dense"),
    row("usdc-50-recursive-seed0"),
    row("usdc-50-recursive-seed1", top1={batch: top + 0.01 for batch, top in TOPS.items()}),
    row("usdc-50-average_8-seed0"),
    row("static-50-seed0"),
    row("tokens-50-recursive-seed0", top1={batch: top - 0.01 for batch, top in TOPS.items()}),
]


def test_names_say_what_was_run() -> None:
    assert parts("usdc-50-random_1_64-seed1") == ("usdc", 50, "random 1 64", 1)
    assert parts("static-35-seed0") == ("static", 35, "", 0)


def test_the_tables_say_means_and_how_far_from_dense() -> None:
    text = table(ROWS)
    assert "| 50 % | both (USDC) | 92.50 ± 0.50 (n = 2) | -0.50 |" in text
    assert "| 50 % | both (USDC), following token streams | 91.00 | -2.00 |" in text
    assert "| 50 % | static only | 93.00 | +0.00 |" in text
    assert "| average 8 | 90.00 | 90.00 | 90.00 | 91.00 | 91.00 | 92.00 | 2.00 | 50.0% |" in text
    assert "| recursive (n = 2) | 90.50 |" in text


def test_one_value_has_no_spread() -> None:
    assert spread([0.5]) == "50.00"


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw(ROWS, tmp_path / "usdc.png")
    assert (tmp_path / "usdc.png").read_bytes().startswith(b"\x89PNG")
