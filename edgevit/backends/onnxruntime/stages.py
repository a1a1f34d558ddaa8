"""A run whose sizes follow the image, cut where it counts: what it allocates from one count to the next.

Sizes after a count depend on what is handed on there and on the count. Many counts lead to the same sizes, so a stage
has a few hundred variants where whole runs differ in tens of thousands of ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgevit.backends.onnxruntime.frames import Frame, Step, bodies_of, results, rounded
from edgevit.backends.onnxruntime.shapes import Value

# Their outputs have shapes that do not depend on the numbers in their inputs, and tell nothing of these numbers.
BLIND = ("Concat", "Sub", "Cast")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The nodes from one count up to the next, or the end.

    Attributes:
        variants: their steps, once for every combination of sizes handed on and count.
        counts: the count of each variant, 0 in the first stage.
        entries: for each way in which the stage before can end, the variants that a run can go on with.
        ends: the way in which each variant ends, an index of the next stage's `entries`.
    """

    variants: tuple[tuple[Step, ...], ...]
    counts: tuple[int, ...]
    entries: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]


def stages(graph: onnx.GraphProto, main: Frame, most: int) -> tuple[Stage, ...]:
    """Return the stages of a main graph, one if it never counts; none if there are more than `most` runs.

    `main` is the frame of the largest sizes, and a run a sequence of counts.
    """
    cut, found = _Cut(graph, main), list[Stage]()
    ways, runs = [_Way((), (0,))], [1]  # how many runs come to each way
    for index in range(len(cut.counts) + 1):
        variants, ends, entries = list[tuple[Step, ...]](), list[int](), list[tuple[int, ...]]()
        after: dict[tuple[int, ...], int] = {}
        next_ways, next_runs = list[_Way](), list[int]()
        if sum(number * len(way.counts) for way, number in zip(ways, runs, strict=True)) > most:
            return ()
        for way, number in zip(ways, runs, strict=True):
            entries.append(tuple(range(len(variants), len(variants) + len(way.counts))))
            for count in way.counts:
                steps, end = cut.variant(index, way.values, count)
                key = (*map(id, end.values), *end.counts)
                if key not in after:
                    after[key] = len(next_ways)
                    next_ways.append(end)
                    next_runs.append(0)
                next_runs[after[key]] += number
                variants.append(steps)
                ends.append(after[key])
        counts = tuple(count for way in ways for count in way.counts)
        found.append(Stage(variants=tuple(variants), counts=counts, entries=tuple(entries), ends=tuple(ends)))
        ways, runs = next_ways, next_runs
    return tuple(found)


@dataclass(frozen=True)
class _Way:
    """What a stage hands on: the values that later sizes depend on, and the counts that can follow."""

    values: tuple[Value, ...]
    counts: tuple[int, ...]


class _Cut:
    """A graph cut at the sums that say how many tokens are merged."""

    def __init__(self, graph: onnx.GraphProto, main: Frame) -> None:
        self._main, self._known = main, _Known()
        self._nodes = list(graph.node)
        # Kept, so that each stays one object.
        self._bodies = {id(node): [(g, list(g.node)) for g in bodies_of(node)] for node in self._nodes}
        self._made = {name: index for index, node in enumerate(self._nodes) for name in node.output}
        self._constants = {t.name: t for t in graph.initializer}
        self.counts = [str(node.output[0]) for node in self._nodes if self._is_count(node)]
        places = [0, *(self._made[name] for name in self.counts), len(self._nodes)]
        self._parts = list(pairwise(places))
        self._handed = [self._needed(place) for place in places[1:-1]]

    def variant(self, index: int, handed: tuple[Value, ...], count: int) -> tuple[tuple[Step, ...], _Way]:
        """Return the steps of a stage that begins with these values and this count, and how it ends."""
        values = dict(self._main.values)
        if index:
            values |= dict(zip(self._handed[index - 1], handed, strict=True))
        start, stop = self._parts[index]
        counted = {self.counts[index - 1]: count} if index else {}
        sized = self._sized(self._nodes[start:stop], self._main.steps[start:stop], values, counted)
        if index == len(self.counts):
            return sized, _Way((), (0,))
        end = [values[name] if data else _bare(values[name]) for name, data in self._handed[index].items()]
        return sized, _Way(tuple(map(self._known.same, end)), self._possible(self.counts[index], values))

    def _is_count(self, node: onnx.NodeProto) -> bool:
        value = self._main.values[node.input[0]] if node.op_type == "ReduceSum" else None
        return value is not None and value.least is not None and value.data is not None

    def _needed(self, place: int) -> dict[str, bool]:
        """Return the earlier values whose shapes the sizes from a node on depend on; True where their numbers count."""
        shapes, numbers = set[str](), set[str]()
        for node in reversed(list(_flat(self._nodes[place:]))):
            names = [name for name in node.input if name]
            if node.op_type != "Shape" or node.output[0] in numbers:
                shapes.update(names)
                numbers.update(names if node.op_type not in BLIND else ())
        return {name: name in numbers for name in sorted(shapes) if self._made.get(name, place) < place}

    def _sized(
        self, nodes: Sequence[onnx.NodeProto], steps: Sequence[Step], values: dict[str, Value], counted: dict[str, int]
    ) -> tuple[Step, ...]:
        """Return the steps with the sizes of a run; `values` are those of before, and get those of the nodes."""
        found = []
        for node, step in zip(nodes, steps, strict=True):
            inner = self._bodies.get(id(node), [])
            bodies = tuple(self._body(*part, body, values) for part, body in zip(inner, step.bodies, strict=True))
            find = partial(results, node, bodies, values, exact=True)
            made = find() if bodies else self._known.of(node, [values[name] for name in node.input if name], find)
            for name, value in zip(node.output, made, strict=True):
                if name:
                    values[name] = self._known.same(_exactly(value, counted[name]) if name in counted else value)
            sizes = tuple((name, rounded(values[name].nbytes)) for name, _ in step.allocates)
            found.append(replace(step, allocates=sizes, bodies=bodies))
        return tuple(found)

    def _body(
        self, graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], body: Frame, outside: Mapping[str, Value]
    ) -> Frame:
        values = dict(outside) | {t.name: body.values[t.name] for t in graph.initializer}
        steps = self._sized(nodes, body.steps, values, {})
        return replace(body, steps=steps, values={o.name: values[o.name] for o in graph.output})

    def _possible(self, name: str, values: Mapping[str, Value]) -> tuple[int, ...]:
        """Return the counts that a run can come to: sums of the first few of its steps, none that it cannot take.

        A step is taken where a score is above a limit. Scores behind the last one are -inf, which is above nothing.
        """
        taken = self._maker(str(self._maker(name).input[0]))
        steps = values[taken.output[0]].data
        assert steps is not None
        last, scores = self._compared(taken, values)
        there = steps > 0  # a row of a table that is shorter than others ends with zeros
        if scores is not None and (np.diff(last[there]) > 0).all():
            there &= last < scores
        return (0, *map(int, np.cumsum(steps[there])))

    def _compared(self, taken: onnx.NodeProto, values: Mapping[str, Value]) -> tuple[np.ndarray, int | None]:
        """Return which scores of a list each step needs, and how many there are; None where this is not known.

        Known is `Mul(Cast(Greater(Gather(Concat(scores, -inf), needed), limit)), steps)`.
        """
        unknown = np.zeros(0), None
        counted = self._maker(str(taken.input[0])) if taken.op_type == "Mul" else taken
        compared = self._maker(str(counted.input[0])) if counted.op_type == "Cast" else counted
        gathered = self._maker(str(compared.input[0])) if compared.op_type == "Greater" else compared
        joined = self._maker(str(gathered.input[0])) if gathered.op_type == "Gather" else gathered
        if joined.op_type != "Concat" or len(joined.input) != 2 or joined.input[1] not in self._constants:
            return unknown
        never, last = self._constants[joined.input[1]], values[gathered.input[1]].data
        known = never.data_location != onnx.TensorProto.EXTERNAL and len(never.dims) == 1
        if not known or last is None:
            return unknown
        return (last, values[joined.input[0]].shape[0]) if np.isneginf(numpy_helper.to_array(never)).all() else unknown

    def _maker(self, name: str) -> onnx.NodeProto:
        return self._nodes[self._made[name]] if name in self._made else onnx.NodeProto()


class _Known:
    """What was found of some values stays true of the same values: most variants differ in a few nodes."""

    def __init__(self) -> None:
        self._results: dict[tuple[int, ...], tuple[Value, ...]] = {}
        self._values: dict[tuple[Any, ...], Value] = {}

    def of(
        self, node: onnx.NodeProto, inputs: Sequence[Value], find: Callable[[], tuple[Value, ...]]
    ) -> tuple[Value, ...]:
        """Return what `find` gives for a node and these very objects, found once; all of them are kept elsewhere."""
        key = (id(node), *map(id, inputs))
        if key not in self._results:
            self._results[key] = find()
        return self._results[key]

    def same(self, value: Value) -> Value:
        """Return the one object for all equal values."""
        numbers = (None if limit is None else limit.tobytes() for limit in (value.data, value.least))
        return self._values.setdefault((value.shape, value.kind, value.varies, *numbers), value)


def _flat(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in bodies_of(node):
            yield from _flat(graph.node)


def _bare(value: Value) -> Value:
    return replace(value, data=None, least=None)


def _exactly(value: Value, number: int) -> Value:
    one = np.full(value.shape, number)
    return replace(value, data=one, least=one)
