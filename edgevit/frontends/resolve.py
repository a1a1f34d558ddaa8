"""What a user calls a model - a Program folder, one that ships, a timm name or a T2T-ViT name - to a `Program`."""

from __future__ import annotations

from pathlib import Path

from edgevit.errors import ProgramError, RuntimeMissingError, WeightsError
from edgevit.frontends.hub_folder import is_hub
from edgevit.program.program import Program, is_program, load_program
from edgevit.util.paths import is_folder
from edgevit.util.progress import Say

SHIPPED = Path(__file__).resolve().parent.parent / "programs"


def shipped_programs() -> tuple[str, ...]:
    """Return names of the Programs that ship with edgevit; edgevit/programs/README.md says how each was made."""
    return tuple(sorted(p.name for p in SHIPPED.iterdir() if is_program(p)))


def resolve(
    model: str,
    *,
    weights: Path | None = None,
    classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    ema: bool | None = None,
    say: Say = lambda _: None,
) -> Program:
    """Return the Program that `model` means. A Program folder is read without torch.

    Args:
        model: path of a Program folder or of a folder of Hugging Face's hub, the name of a Program that ships, a timm
            name (with or without tag), or a T2T-ViT name.
        weights: a checkpoint; without it timm's pretrained weights are fetched.
        classes: length of the output if the weights do not decide it.
        image_size: height and width, both multiples of the patch size, if the weights do not decide it.
        ema: of a checkpoint with both, the averaged weights (True) or the plain ones (False).
        say: told what was chosen, assumed or left out of a checkpoint.

    Raises:
        UnknownModelError: no folder and no model is called so; the nearest names are offered.
        UnsupportedModelError: the model does not fit, with the reason.
        ProgramError: a folder that is no Program, or options that a Program cannot take.
        WeightsError: weights missing, unreadable, not fitting, or not to be fetched.
    """
    path = SHIPPED / model if model in shipped_programs() and not is_program(Path(model)) else Path(model)
    if is_program(path):
        if any(option is not None for option in (weights, classes, image_size, ema)):
            raise ProgramError(
                f"{model} is a Program with its own weights, classes and image size; give it alone, or name a model"
            )
        return load_program(path)
    hub = is_folder(path) and is_hub(path)
    if hub and weights is not None:
        raise WeightsError(f"{model} is a folder with its own weights; give it alone, or a name with --weights")
    if not hub and (is_folder(path) or path.name == "program.json" or len(path.parts) > 1):
        what = "holds no program.json" if is_folder(path) else "is no folder"
        raise ProgramError(
            f"{model} {what}; give a Program folder, a folder of Hugging Face's hub "
            "(with config.json), or a name that `edgevit models` lists"
        )
    try:
        from edgevit.frontends.from_timm import from_timm
        from edgevit.frontends.own_weights import own_program
        from edgevit.frontends.t2t import CONFIGS, t2t_program
    except ModuleNotFoundError as error:
        raise RuntimeMissingError(
            f"{error.name} is not installed, and {model!r} is no Program folder; "
            "install the training extra: pip install 'edgevit[train]'"
        ) from error
    if model in CONFIGS:
        if weights is None:
            raise WeightsError(f"{model} has no weights to fetch; pass --weights with an upstream T2T-ViT checkpoint")
        return t2t_program(model, weights, classes=classes, image_size=image_size, ema=ema, say=say)
    if hub or weights is not None:
        return own_program(
            None if hub else model, weights or path, classes=classes, image_size=image_size, ema=ema, say=say
        )
    if ema is not None:
        raise WeightsError("--ema and --no-ema choose between the weights of a file; pass --weights, or omit it")
    return from_timm(model, pretrained=True, classes=classes, image_size=image_size)
