from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgevit.errors import ProgramError, UnknownModelError, UnsupportedModelError, WeightsError
from edgevit.frontends.resolve import resolve
from edgevit.frontends.t2t import random_state, t2t_spec
from edgevit.frontends.timm_import import timm
from edgevit.program.program import save_program
from tests.tiny import tiny_program

torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_program(tiny_program(), tmp_path / "p")
    return tmp_path / "p"


def test_a_program_folder_is_read_without_torch(folder: Path) -> None:
    code = (
        "import sys; from edgevit.frontends.resolve import resolve; resolve(sys.argv[1]); "
        "print(*({'torch', 'timm'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
    assert resolve(str(folder)).spec == tiny_program().spec


@pytest.mark.parametrize("options", [{"weights": Path("w.pth")}, {"classes": 3}, {"image_size": (32, 32)}])
def test_a_program_takes_no_other_weights(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ProgramError, match="give it alone"):
        resolve(str(folder), **options)


def test_paths_that_are_no_program(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"holds no program.json"):
        resolve(str(tmp_path))
    with pytest.raises(ProgramError, match="is no folder"):
        resolve(str(tmp_path / "none"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(ProgramError, match="is no folder"):
        resolve(str(tmp_path / "file"))


def test_names_resolve_with_their_weights(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    program = resolve("vit_tiny_patch16_224", weights=tmp_path / "vit.safetensors", image_size=(64, 64))
    assert (program.spec.head.classes, program.spec.grid) == (4, (4, 4))
    state = random_state(t2t_spec("t2t_vit_7"))
    save_file(state, tmp_path / "t2t.safetensors")
    program = resolve("t2t_vit_7", weights=tmp_path / "t2t.safetensors")
    assert np.array_equal(program.weights["head.weight"], state["head.weight"].numpy().T)


def test_names_that_do_not_resolve(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="deit_tiny_patch16_224"):
        resolve("deit_tiny_patch16_22")
    with pytest.raises(UnsupportedModelError, match="ResNet"):
        resolve("resnet18")
    with pytest.raises(WeightsError, match="pass --weights with an upstream T2T-ViT checkpoint"):
        resolve("t2t_vit_7")
    with pytest.raises(WeightsError, match="does not exist"):
        resolve("vit_tiny_patch16_224", weights=tmp_path / "none.pth")


def test_weights_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own answer when it cannot be reached."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_url", unreachable, raising=False)
    with pytest.raises(WeightsError, match="cannot fetch the pretrained weights of 'vit_tiny_patch16_224'.*--weights"):
        resolve("vit_tiny_patch16_224")


def unreachable(*_: Any, **__: Any) -> None:
    raise OSError("no route to host")


def test_without_torch_the_message_says_what_to_install(folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from edgevit.frontends.resolve import resolve\n"
        "from edgevit.errors import RuntimeMissingError\n"
        "resolve(sys.argv[1])\n"
        "try: resolve('deit_tiny_patch16_224')\n"
        "except RuntimeMissingError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert "torch is not installed" in run.stdout and "edgevit[train]" in run.stdout
