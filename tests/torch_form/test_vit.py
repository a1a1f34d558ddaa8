from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from edgevit.program.program import Program
from edgevit.program.spec import BranchSpec
from edgevit.torch_form.vit import Vit, normalise
from tests.tiny import tiny_images, tiny_program

torch.set_num_threads(1)

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"prefix": 2, "head_prefix": 2, "image": (24, 40), "activation": "relu"},
    {"prefix": 5, "pool": "mean", "heads": 4, "activation": "silu"},
    {"prefix": 0, "qk_norm": True, "activation": "gelu_tanh"},
    {"gated": True, "skip": True, "activation": "quick_gelu"},
    {"gated": True, "gate_pool": "mean", "stem_norm": True},
    {"removed": ("b00_mhsa", "b01_ffn"), "skip": True, "pooled_norm": True},
)

ERF = np.vectorize(math.erf)
ACTIVATIONS: dict[str, Any] = {
    "gelu": lambda x: x * (1 + ERF(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


class Plain:
    """A Program on one image, one token and one head at a time, in float64: what its documentation says, in numpy."""

    def __init__(self, program: Program) -> None:
        self.spec = program.spec
        self.w = {n: a.astype(np.float64) for n, a in program.weights.items()}

    def norm(self, name: str, x: np.ndarray, eps: float) -> np.ndarray:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        result: np.ndarray = scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"] if name else scaled
        return result

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        result: np.ndarray = x @ self.w[f"{name}.weight"] + self.w[f"{name}.bias"]
        return result

    def stem(self, image: np.ndarray) -> np.ndarray:
        pixels = (image / 255 - np.array(self.spec.image.mean)) / np.array(self.spec.image.std)
        p, (rows, columns) = self.spec.stem.patch, self.spec.grid
        patches = [
            pixels[r * p : (r + 1) * p, c * p : (c + 1) * p].reshape(-1) for r in range(rows) for c in range(columns)
        ]
        tokens = self.linear("stem", np.stack(patches)) + self.w["stem.pos"]
        x = np.concatenate([self.w["stem.prefix"], tokens])
        return self.norm("stem.norm", x, self.spec.norm_eps) if self.spec.stem.norm else x

    def branch(self, branch: BranchSpec, x: np.ndarray) -> np.ndarray:
        y = self.norm(f"{branch.name}.norm", x, self.spec.norm_eps)
        if branch.kind == "ffn":
            return self.linear(
                f"{branch.name}.fc2", ACTIVATIONS[branch.activation](self.linear(f"{branch.name}.fc1", y))
            )
        q, k, v = np.split(self.linear(f"{branch.name}.qkv", y), 3, axis=-1)
        heads = []
        for h in range(branch.units):
            part = slice(h * branch.head_dim, (h + 1) * branch.head_dim)
            qh, kh = q[:, part], k[:, part]
            if branch.qk_norm:
                qh = self.norm(f"{branch.name}.q_norm", qh, self.spec.qk_norm_eps)
                kh = self.norm(f"{branch.name}.k_norm", kh, self.spec.qk_norm_eps)
            scores = np.exp(branch.scale * qh @ kh.T)
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, part])
        return self.linear(f"{branch.name}.proj", np.concatenate(heads, axis=-1))

    def is_open(self, branch: BranchSpec, x: np.ndarray, effort: float) -> bool:
        if branch.gate is None:
            return True
        pooled = x[0] if branch.gate.pool == "prefix" else x[self.spec.stem.prefix :].mean(0)
        logit = self.norm("", pooled, self.spec.norm_eps) @ self.w[f"{branch.name}.gate.weight"]
        return bool(logit + self.w[f"{branch.name}.gate.bias"][0] + effort > branch.gate.threshold)

    def run(self, image: np.ndarray, effort: float = math.inf) -> tuple[np.ndarray, list[bool]]:
        x, gates = self.stem(image), []
        for branch in self.spec.branches:
            gates.append(not branch.removed and self.is_open(branch, x, effort))
            if gates[-1]:
                x = x + self.branch(branch, x)
            elif branch.skip:
                skip, prefix = self.w[f"{branch.name}.skip"], self.spec.stem.prefix
                x = x + np.concatenate([skip[:prefix], np.repeat(skip[prefix:], self.spec.patches, axis=0)])
        head, prefix = self.spec.head, self.spec.stem.prefix
        x = self.norm("head.norm", x, self.spec.norm_eps) if head.norm else x
        pooled = x[: head.prefix].reshape(-1) if head.pool == "prefix" else x[prefix:].mean(0)
        pooled = self.norm("head.pooled_norm", pooled, self.spec.norm_eps) if head.pooled_norm else pooled
        return (self.linear("head", pooled) if head.linear else pooled), gates


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("effort", [math.inf, 0.0, -0.5, -math.inf])
def test_outputs_are_those_of_the_plain_form(options: dict[str, Any], effort: float) -> None:
    program = tiny_program(**options)
    images = tiny_images(program.spec, 4)
    model = Vit(program).double()
    with torch.no_grad():
        got = model(normalise(program.spec, images).double(), model.hard_gates(effort)).numpy()
        everything = model(normalise(program.spec, images).double()).numpy()
    plain = Plain(program)
    for row, image in zip(got, images, strict=True):
        # The images are normalised in float32.
        assert np.abs(row - plain.run(image, effort)[0]).max() < 1e-5
    assert effort != math.inf or np.array_equal(got, everything)


def test_tiny_gates_are_open_for_some_images_and_closed_for_others() -> None:
    """What every test of gates stands on."""
    program = tiny_program(gated=True)
    gates = np.array([Plain(program).run(image, 0.0)[1] for image in tiny_images(program.spec, 16)])
    assert 0.2 < gates.mean() < 0.8
    assert (gates.min(axis=0) != gates.max(axis=0)).any()


def test_soft_gates_mix_the_branch_and_its_skip_rows() -> None:
    program = tiny_program(gated=True, skip=True, depth=1)
    model = Vit(program)
    with torch.no_grad():
        x = model.stem(normalise(program.spec, tiny_images(program.spec, 2)))
        got = model.blocks(x, lambda index, _: torch.tensor(0.25 + 0.5 * index))
        first, second = program.spec.branches
        y = x + 0.25 * model.branch(first, x) + 0.75 * model.skip_rows(first)
        y = y + 0.75 * model.branch(second, y) + 0.25 * model.skip_rows(second)
    assert torch.allclose(got, y, atol=1e-5)


def test_every_linear_is_tapped_once_and_may_be_replaced() -> None:
    program = tiny_program()
    model, images = Vit(program), normalise(program.spec, tiny_images(program.spec, 1))
    seen: list[str] = []

    def look(name: str, value: torch.Tensor) -> torch.Tensor:
        seen.append(name)
        assert value.shape[-1] == program.weights[f"{name}.weight"].shape[0]
        return value

    with torch.no_grad():
        whole = model(images)
        assert torch.equal(model(images, tap=look), whole)
        for name in seen:
            changed = model(images, tap=lambda n, v, name=name: v * 1.5 if n == name else v)
            assert not torch.allclose(changed, whole, atol=1e-4), name
    assert seen == [
        n.removesuffix(".weight") for n, a in program.weights.items() if n.endswith("weight") and a.ndim > 1
    ]


def test_parameters_go_back_into_a_program() -> None:
    program = tiny_program(gated=True, skip=True)
    model = Vit(program)
    again = model.to_program()
    assert again.spec == program.spec
    assert all(np.array_equal(again.weights[n], a) for n, a in program.weights.items())
    with torch.no_grad():
        model.array("head.bias").add_(1)
    assert np.array_equal(model.to_program().weights["head.bias"], program.weights["head.bias"] + 1)
    assert np.array_equal(again.weights["head.bias"], program.weights["head.bias"])


@pytest.mark.parametrize("options", [{}, {"gated": True, "skip": True}, {"gated": True, "gate_pool": "mean"}])
@pytest.mark.parametrize("removed", [(), ("b01_mhsa",), ("b01_ffn",), ("b01_mhsa", "b01_ffn")])
def test_trimmed_rows_change_nothing(options: dict[str, Any], removed: tuple[str, ...]) -> None:
    """Outputs and derivatives are the same without the rows that nothing reads, and less is computed."""
    program = tiny_program(depth=2, removed=removed, **options)
    images, model = normalise(program.spec, tiny_images(program.spec)), Vit(program)
    seen: list[int] = []

    def tap(name: str, value: torch.Tensor) -> torch.Tensor:
        seen.append(value.numel() if name != "head" else 0)
        return value

    outputs, gradients, work = [], [], []
    for trim in (False, True):
        decide = model.hard_gates() if program.spec.gated else None
        logits = model(images, decide, tap, trim=trim)
        logits.square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
        outputs.append(logits)
        work.append(sum(seen))
        seen.clear()
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-4)
    assert work[1] < work[0]
