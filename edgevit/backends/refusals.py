"""What runtimes refuse alike, in a target and of a search."""

from __future__ import annotations

from collections.abc import Collection

from edgevit.errors import TargetError
from edgevit.schema.target import Target


def refused_formats(target: Target, formats: Collection[str]) -> tuple[str, ...]:
    """Return the fault of a target with no format, or with one that its runtime does not write."""
    if target.formats and set(target.formats) <= set(formats):
        return ()
    return (f"formats: got {list(target.formats)}, allowed for {target.backend}: {list(formats)}, at least one",)


def refused_threads(target: Target, most: int) -> tuple[str, ...]:
    """Return the fault of a target with more threads than its runtime takes."""
    if target.threads <= most:
        return ()
    return (f"threads: got {target.threads}, allowed for {target.backend}: 1 to {most}",)


def refused_precision(target: Target) -> tuple[str, ...]:
    """Return the fault of a target whose runtime keeps what is float in float32."""
    if target.inference_precision == "f32":
        return ()
    return (f"inference_precision: got {target.inference_precision!r}, allowed for {target.backend}: 'f32'",)


def refused_attention(target: Target, *, int8: bool = False) -> tuple[str, ...]:
    """Return the fault of a target with int8 attention, where its runtime does not have that, or the target no int8."""
    if target.attention == "float32" or (int8 and target.int8):
        return ()
    state = str(target.int8).lower()
    return (f"attention: got 'int8', allowed for {target.backend} with int8 = {state}: 'float32'",)


def refused_products(target: Target, *, able: bool = False) -> tuple[str, ...]:
    """Return the fault of a target whose weights are to be rounded for kernels that its runtime does not have."""
    if target.int16_products == 2 or able:
        return ()
    where = f"{target.backend} on {target.arch}"
    return (f"int16_products: got {target.int16_products}, allowed for {where}: 2",)


def refused_cpu(target: Target) -> tuple[str, ...]:
    """Return the fault of a target that names a CPU to a runtime that picks its kernels on the device."""
    if target.cpu is None:
        return ()
    return (f"cpu: got {target.cpu!r}; {target.backend} takes none: it picks its kernels on the device",)


def refuse_search(target: Target, tune_s: float) -> None:
    """Raise TargetError for a search where the runtime's kernels have no tiles."""
    if tune_s:
        raise TargetError(f"{target.name} runs on {target.backend}, which has no tiles to search; omit --tune")
