from __future__ import annotations

import datetime
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgevit.frontends.catalogue import Catalogue, Entry, catalogue_text, read_catalogue
from edgevit.frontends.catalogue_rows import all_names, try_model
from edgevit.frontends.t2t import CONFIGS
from edgevit.frontends.timm_import import timm
from edgevit.frontends.timm_module import program_from_module
from edgevit.torch_form.vit import Vit, normalise
from tests.frontends.real import enliven, outputs, real_images

torch.set_num_threads(1)
CATALOGUE = read_catalogue()
# Another sample every day; a failure names the model, and stays a failure of the table.
RANDOM = random.Random(datetime.date.today().toordinal())


def test_the_table_holds_every_name() -> None:
    assert CATALOGUE.timm == timm.__version__, "run: python -m edgevit.frontends.catalogue_rows"
    architectures = {e.name.partition(".")[0] for e in CATALOGUE.models}
    assert architectures == set(all_names()), "run: python -m edgevit.frontends.catalogue_rows"
    names = [e.name for e in CATALOGUE.models]
    assert len(names) == len(set(names))


def test_enough_fits_and_every_refusal_has_a_reason() -> None:
    fitting = [e for e in CATALOGUE.models if e.fits]
    assert len(fitting) >= 150
    assert len([e for e in fitting if e.name.startswith(("deit", "vit_"))]) >= 150
    assert set(CONFIGS) <= {e.name for e in fitting}
    assert all(bool(e.reason) != e.fits for e in CATALOGUE.models)
    assert all(e.height and e.width and e.patch and e.parameters and e.macs for e in fitting)


@pytest.mark.parametrize("fits", [True, False])
def test_a_random_sample_tried_again_gives_the_same_rows(fits: bool) -> None:
    for entry in RANDOM.sample([e for e in CATALOGUE.models if e.fits == fits], 5):
        assert try_model(entry.name) == entry


def test_a_random_sample_of_what_fits_gives_timm_outputs() -> None:
    """One block of each, random weights."""
    small = [e for e in CATALOGUE.models if e.fits and e.parameters < 700e6 and e.name not in CONFIGS]
    for entry in RANDOM.sample(small, 4):
        model = enliven(timm.create_model(entry.name, depth=1, num_classes=10))
        program = program_from_module(model, entry.name)
        size = (program.spec.image.height, program.spec.image.width)
        images = normalise(program.spec, real_images(1, *size))
        expected, got = outputs(model, images), outputs(Vit(program), images)
        assert abs(expected - got).max() <= 1e-5 * max(1.0, abs(expected).max()), entry.name


def test_the_counts_are_those_the_literature_gives() -> None:
    rows = {e.name: e for e in CATALOGUE.models}
    for name, parameters, macs in (
        ("deit_tiny_patch16_224.fb_in1k", 5.717e6, 1.26e9),
        ("deit_small_patch16_224.fb_in1k", 22.05e6, 4.61e9),
        ("deit_base_patch16_224.fb_in1k", 86.57e6, 17.58e9),
    ):
        assert rows[name].parameters == pytest.approx(parameters, rel=0.001)
        assert rows[name].macs == pytest.approx(macs, rel=0.01)


def test_the_file_round_trips(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(catalogue_text(CATALOGUE))
    assert read_catalogue(tmp_path / "c.json") == CATALOGUE


def test_a_faulty_file_is_told(tmp_path: Path) -> None:
    text = catalogue_text(Catalogue(timm="1", models=(Entry(name="a", fits=True),)))
    (tmp_path / "c.json").write_text(text.replace("fits", "fit"))
    with pytest.raises(ValueError, match="unknown key 'fit'.*missing key 'fits'"):
        read_catalogue(tmp_path / "c.json")


def test_reading_it_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from edgevit.frontends.catalogue import read_catalogue; read_catalogue(); "
        "print(*({'torch', 'timm', 'numpy', 'onnx'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
