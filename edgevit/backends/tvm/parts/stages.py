"""The stages of a Program as lists of kernels: stem, branch bodies, gates, skip rows and head, each with its weights.

Weights of a branch and of its gate are apart: a closed branch's are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgevit.backends.tvm.codegen.layout import Place, pad_columns
from edgevit.backends.tvm.codegen.schedules import Isa
from edgevit.backends.tvm.kernels import common
from edgevit.backends.tvm.kernels.merge import Sizes
from edgevit.backends.tvm.parts import attention, ffn, gate, head, patch_stem, t2t_stem, tokens
from edgevit.backends.tvm.parts.stage import Choose, Shared, Stage, StageWriter
from edgevit.program.program import Program
from edgevit.program.spec import BranchSpec, MergeSpec, StemKind
from edgevit.schema.quant_plan import QuantPlan

STEMS: Mapping[StemKind, Callable[[Shared, StageWriter, Place], None]] = {
    "patch": patch_stem.embed,
    "t2t_performer": t2t_stem.embed,
    "t2t_transformer": t2t_stem.embed,
}


class Stages(Shared):
    """Makes the stages of one Program and collects how large an arena they need together."""

    def __init__(self, program: Program, isa: Isa, choose: Choose, plan: QuantPlan | None = None) -> None:
        super().__init__(program, isa, choose, plan)
        self._base = self.arena.mark()

    def stem(self, states: tuple[bool, ...]) -> Stage:
        """Map image to stream, and the state of every branch that no gate decides."""
        stage, prefix = self._stage("stem"), self.spec.stem.prefix
        STEMS[self.spec.stem.kind](self, stage, self.stream.after(prefix))
        rows = stage.blob.add(pad_columns(self.program.weights["stem.prefix"], self.stream.stride)) if prefix else 0
        stage.call("start", common.start, self.stream, rows, prefix, states, takes=("arena", "weights", "gates"))
        if self.spec.stem.norm:
            stage.norm("stem.norm", self.stream, self.stream)
        return stage.done()

    def branch(self, branch: BranchSpec, rows: int, read: int, sizes: Sizes | None = None) -> Stage:
        """Compute stream[:rows] += f(norm(stream[:read])); `sizes` where tokens have been merged."""
        stage = self._stage(branch.name)
        if branch.kind == "mhsa":
            attention.mhsa(self, stage, branch, rows, read, sizes)
        else:
            ffn.ffn(self, stage, branch, rows, sizes)
        return stage.done()

    def skip(self, branch: BranchSpec, rows: int, sizes: Sizes | None = None) -> Stage:
        """Compute stream[:rows] += the branch's skip rows."""
        stage = self._stage(f"{branch.name}.skip")
        gate.skipped(self, stage, branch, rows, sizes)
        return stage.done()

    def gate(self, branch: BranchSpec, index: int, read: int, sizes: Sizes | None = None) -> Stage:
        """Return the gate's decision, whose only kernel returns it."""
        stage = self._stage(f"{branch.name}.gate")
        gate.gate(self, stage, branch, index, read, sizes)
        return stage.done()

    def merge(self, point: MergeSpec, rows: int, sizes: Sizes | None = None) -> Stage:
        """Merge tokens of stream[:rows]; `sizes` where tokens have been merged before."""
        stage = self._stage(f"merge.{point.after}")
        tokens.merge(self, stage, point, rows, sizes)
        return stage.done()

    def head(self, read: int, sizes: Sizes | None = None) -> Stage:
        """Compute stream[:read] to logits."""
        stage = self._stage("head")
        head.head(self, stage, read, sizes)
        return stage.done()

    def _stage(self, name: str) -> StageWriter:
        self.arena.release(self._base)
        return StageWriter(name, self)
