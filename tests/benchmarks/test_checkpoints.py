from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.checkpoint_forms import FORMS, Subject
from benchmarks.checkpoints import Cell, Table, subjects, to_markdown, try_form

SMALL = list(subjects(None))


@pytest.mark.parametrize("title", FORMS)
@pytest.mark.parametrize("subject", SMALL, ids=lambda s: s.title)
def test_every_form_loads_exactly_or_is_refused_in_the_right_words(
    title: str, subject: Subject, tmp_path: Path
) -> None:
    cell = try_form(title, subject, tmp_path, None)
    if cell is None:
        assert title in ("fc_norm (MAE, mean pooling)", *[t for t in FORMS if "names" in t or "JAX" in t])
        return
    assert cell.outcome in ("exact", "refused"), cell.words or cell.error


def test_the_table_shows_every_form_and_its_words() -> None:
    cells = (
        Cell(form="safetensors", model="A", outcome="exact", error=3e-7),
        Cell(form="pre_logits", model="A", outcome="refused", words="no place\nfor it"),
    )
    text = to_markdown(Table(timm="1", torch="2", images="noise", cells=cells))
    assert "| safetensors | exact (3e-07) |" in text
    assert "| pre_logits | refused |" in text and "- pre_logits: no place for it" in text
