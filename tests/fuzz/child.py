"""One process of a fuzzer: watches the lines of edgevit that run, and ends at the first input that is not to be."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.fuzz.mutate import Mutator


def main(name: str, options: list[str]) -> None:
    """Fuzz a target with libFuzzer's options and corpora."""
    import atheris

    folder = Path(tempfile.mkdtemp(dir=options[0]))
    # What a reader is made of is imported here, with every branch of it counted.
    with atheris.instrument_imports(include=["edgevit", "PIL", "tomllib"]):
        from tests.fuzz.targets import held

        read = held(name, folder)
    mutator = Mutator(lambda data, most: bytes(atheris.Mutate(data, most)))
    atheris.Setup([sys.argv[0], *options[1:]], read, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
