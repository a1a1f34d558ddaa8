"""Files by their paths as a tree with sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A folder or a file: its name, its path in the whole, its bytes with all that is inside, the largest first."""

    name: str
    path: str
    bytes: int
    inside: tuple[Branch, ...] = ()

    @property
    def depth(self) -> int:
        """Return how many levels it has, its own included."""
        return 1 + max((each.depth for each in self.inside), default=0)

    def walk(self) -> Iterator[Branch]:
        """Yield it and all that is inside, from the top."""
        yield self
        for each in self.inside:
            yield from each.walk()


DEPTH = 6  # levels of folders that are told apart


def tree(name: str, files: Sequence[tuple[str, int]]) -> Branch:
    """Return the tree of (path, bytes)."""
    return _branch(name, "", [(path.split("/", DEPTH), size) for path, size in files])


def _branch(name: str, path: str, files: Sequence[tuple[list[str], int]]) -> Branch:
    below: dict[str, list[tuple[list[str], int]]] = {}
    for parts, size in files:
        if parts:
            below.setdefault(parts[0], []).append((parts[1:], size))
    inside = [_branch(part, f"{path}/{part}" if path else part, found) for part, found in below.items()]
    return Branch(
        name=name,
        path=path or name,
        bytes=sum(size for _, size in files),
        inside=tuple(sorted(inside, key=lambda each: -each.bytes)),
    )
