"""A Program as a Relax module: one function per branch, called inside `relax.If` where the branch has a gate.

`main(image, effort, arena, logits, gates, [tokens,] weights...) -> arena` allocates nothing: activations live in the
arena that the caller gives, weights in one array per stage that the caller may map from a file, and outputs where the
caller wants them. A closed branch touches neither its code nor its weights. Where the number of tokens follows the
image, kernels read it from `tokens` as they run: places and calls are those of the image that keeps most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from edgevit.backends.tvm.codegen.schedules import Isa, default_tile
from edgevit.backends.tvm.kernels.merge import Choice
from edgevit.backends.tvm.parts import tokens
from edgevit.backends.tvm.parts.stage import Choose, Counted, Kernel, Stage
from edgevit.backends.tvm.parts.stages import Stages
from edgevit.program.macs import rows_in, rows_out
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.program.tokens import merge_at, tokens_before
from edgevit.schema.quant_plan import QuantPlan


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A Relax module and what its `main` is to be called with.

    Attributes:
        module: `main`, a private function per stage and a kernel per distinct shape.
        spec: what it was lowered from.
        isa: what its kernels are for.
        arena: float32 elements of the activation arena, to be aligned to 64 bytes.
        weights: name and flat float32 array of every weight parameter, in order, to be aligned to 64 bytes.
        int8: every int8 Linear's kernels by name, with what must be in their code.
        choices: where in the arena every point leaves which pairs it has merged.
    """

    module: Any = field(repr=False)
    spec: ProgramSpec
    isa: Isa
    arena: int
    weights: tuple[tuple[str, np.ndarray], ...] = field(repr=False)
    int8: tuple[tuple[str, Counted], ...] = ()
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Step:
    """One link of the main chain: `body` runs where there is no gate or it is open, `otherwise` where it is closed."""

    gate: Stage | None = None
    body: Stage | None = None
    otherwise: Stage | None = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Return those of them that there are."""
        return tuple(stage for stage in (self.gate, self.body, self.otherwise) if stage is not None)


def lower(
    program: Program,
    isa: Isa,
    plan: QuantPlan | None = None,
    *,
    gating: bool = True,
    choose: Choose = default_tile,
) -> Lowered:
    """Lower a Program.

    Args:
        program: the model; with `gating` false its gates are ignored and every branch runs.
        isa: instruction set.
        plan: which Linears are int8 and how; None keeps all of them float32, and what else there is always is.
        gating: whether gates decide.
        choose: the register tile for a product's shape.
    """
    stages = Stages(program, isa, choose, plan)
    steps = chain(stages, gating=gating)
    lowered = _Writer(program.spec, isa, stages.arena.size).write(steps)
    return replace(lowered, choices=tuple(stages.choices.values()))


def chain(stages: Stages, *, gating: bool = True) -> list[Step]:
    """Return the main chain of a Program; only after it the size of the stages' arena is known."""
    spec = stages.spec
    steps = [Step(body=stages.stem(tuple(not b.removed for b in spec.branches)))]
    rows = rows_out(spec)
    sizes = None
    for index, (branch, kept, read) in enumerate(zip(spec.branches, rows, rows_in(spec), strict=True)):
        skip = stages.skip(branch, kept, sizes) if branch.skip and (branch.removed or gating) else None
        if branch.removed:
            steps.append(Step(body=skip))
        else:
            gate = stages.gate(branch, index, read, sizes) if branch.gate is not None and gating else None
            body = stages.branch(branch, kept, read, sizes)
            steps.append(Step(gate=gate, body=body, otherwise=skip if gate else None))
        if (point := merge_at(spec, branch.name)) is not None:
            steps.append(Step(body=stages.merge(point, kept, sizes)))
            sizes = tokens.after(stages, point)
    steps.append(Step(body=stages.head(tokens_before(spec)[-1] if spec.head.pool == "mean" else spec.tokens, sizes)))
    return steps


class _Writer:
    """Writes the steps as Relax functions and every distinct kernel once."""

    def __init__(self, spec: ProgramSpec, isa: Isa, arena: int) -> None:
        self.spec, self.isa, self.size = spec, isa, arena
        self.block = relax.BlockBuilder()
        self._kernels: dict[tuple[Any, ...], Any] = {}
        self._functions: dict[tuple[Any, ...], Any] = {}
        self._int8: dict[tuple[str, Counted], None] = {}

    def write(self, steps: Sequence[Step]) -> Lowered:
        stages = [stage for step in steps for stage in step.stages]
        functions = {stage.name: self._function(stage) for stage in stages if not stage.name.endswith(".gate")}
        # What every run reads lies together, so that pages around it bring in no closed branch's weights.
        bodies = {step.body.name for step in steps if step.gate is not None and step.body is not None}
        stages.sort(key=lambda stage: stage.name in bodies)
        names = [stage.name for stage in stages if stage.weights.size]
        counted = ("tokens",) if self.spec.adaptive else ()
        parameters = {name: self._parameter(name) for name in ("image", "effort", "arena", "logits", "gates", *counted)}
        weights = {s.name: self._tensor(f"w_{_plain(s.name)}", (s.weights.size,)) for s in stages if s.weights.size}
        with self.block.function(
            "main", [*parameters.values(), *weights.values()], attrs={"relax.force_pure": 1, "global_symbol": "main"}
        ):
            # The stream is in the arena: handing the arena from call to call is what orders them.
            arena = parameters["arena"]
            for step in steps:
                arena = self._step(step, functions, parameters, weights, arena)
            self.block.emit_func_output(arena)
        return Lowered(
            module=self.block.finalize(),
            spec=self.spec,
            isa=self.isa,
            arena=self.size,
            weights=tuple((s.name, s.weights) for s in stages if s.name in names),
            int8=tuple(self._int8),
        )

    def _step(
        self, step: Step, functions: dict[str, Any], parameters: dict[str, Any], weights: dict[str, Any], arena: Any
    ) -> Any:
        def call(stage: Stage | None) -> Any:
            if stage is None:
                return arena
            given = {**parameters, "arena": arena, "weights": weights.get(stage.name)}
            return relax.Call(functions[stage.name], [given[name] for name in _takes(stage)])

        if step.gate is None:
            return self.block.emit(call(step.body)) if step.body else arena
        given = {**parameters, "arena": arena, "weights": weights[step.gate.name]}
        is_open = self.block.emit(self._call(step.gate.kernels[0], given, tvm.ir.PrimType("bool")))
        # Each side is one call or nothing: the compiler mixes up the storage of longer ones.
        sides = [relax.SeqExpr([], call(side)) for side in (step.body, step.otherwise)]
        return self.block.emit(relax.If(is_open, *sides))

    def _function(self, stage: Stage) -> Any:
        """The stage as a private function that returns the arena; equal stages of different weights share one."""
        takes = _takes(stage)
        for kernel in stage.kernels:
            name = str(self._kernel(kernel).name_hint)
            if kernel.counted is not None:
                self._int8[name, kernel.counted] = None
        key = (stage.weights.size, *((k.build, k.arguments, k.takes) for k in stage.kernels))
        if key in self._functions:
            return self._functions[key]
        given = {
            name: self._tensor("weights", (stage.weights.size,)) if name == "weights" else self._parameter(name)
            for name in takes
        }
        with self.block.function(
            f"run_{_plain(stage.name)}", list(given.values()), private=True, attrs={"relax.force_pure": 1}
        ):
            for kernel in stage.kernels:
                self.block.emit(self._call(kernel, given, relax.TupleType([])))
            self._functions[key] = self.block.emit_func_output(given["arena"])
        return self._functions[key]

    def _call(self, kernel: Kernel, given: dict[str, Any], result: Any) -> Any:
        return relax.Call(self._kernel(kernel), [given[name] for name in kernel.takes], ty_args=[result])

    def _kernel(self, kernel: Kernel) -> Any:
        key = (kernel.build, kernel.arguments)
        if key not in self._kernels:
            function = kernel.build(self.isa, self.size, *kernel.arguments)
            name = f"{kernel.name}_{len(self._kernels)}"
            self._kernels[key] = self.block.add_func(function.with_attr("global_symbol", name), name)
        return self._kernels[key]

    def _parameter(self, name: str) -> Any:
        image = self.spec.image
        shape, kind = {
            "image": ((1, image.height, image.width, 3), "uint8"),
            "effort": ((), "float32"),
            "arena": ((self.size,), "float32"),
            "logits": ((1, self.spec.head.classes), "float32"),
            "gates": ((len(self.spec.branches),), "uint8"),
            "tokens": ((len(self.spec.merges),), "int32"),
        }[name]
        return self._tensor(name, shape, kind)

    def _tensor(self, name: str, shape: tuple[int, ...], kind: str = "float32") -> Any:
        return relax.Var(name, relax.TensorType(shape, kind))


def _takes(stage: Stage) -> list[str]:
    """Return the parameters of a stage's kernels, each once, in order of first use."""
    return list(dict.fromkeys(name for kernel in stage.kernels for name in kernel.takes))


def _plain(name: str) -> str:
    return name.replace(".", "_")
