from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from edgevit.compress.tokens import search as module
from edgevit.compress.tokens.search import SCREENED_PLANS, Found, _Judge, follow, search
from edgevit.errors import BudgetError
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.program.tokens import read_plan, with_merges
from edgevit.torch_form.vit import Vit, normalise
from tests.tiny import tiny_images, tiny_program

torch.set_num_threads(1)


def logits(program: Program, images: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        answers: torch.Tensor = Vit(program)(normalise(program.spec, images))
        return answers.log_softmax(dim=-1)


def test_a_plan_within_the_budget_with_little_drift_is_found() -> None:
    program = tiny_program(depth=6)
    images, budget, said = tiny_images(program.spec, 8), int(0.75 * total_macs(program.spec)), list[str]()
    found = search(program, images, budget, reference=program, say=said.append)
    assert total_macs(found.spec) <= budget and found.images == 8
    assert sum(line.startswith("chosen: tokens merged at ") for line in said) == 1
    got = logits(program.with_weights(found.shifts, found.spec), images)
    expected = logits(program, images)
    drift = (expected.exp() * (expected - got)).sum(dim=1).mean().item()
    assert found.drift == pytest.approx(drift, rel=1e-3)
    assert found.agreement == (got.argmax(1) == expected.argmax(1)).float().mean().item()
    # Early points with as many pairs as the budget takes from them drift more.
    early = with_merges(program.spec, read_plan("1:7", program.spec))
    assert total_macs(early) < budget
    worse = logits(program.with_weights({}, early), images)
    assert found.drift < (expected.exp() * (expected - worse)).sum(dim=1).mean().item()


def test_searching_twice_finds_the_same() -> None:
    program = tiny_program(depth=6)
    images, budget = tiny_images(program.spec, 4), int(0.8 * total_macs(program.spec))
    first, second = (search(program, images, budget, reference=program, say=lambda _: None) for _ in range(2))
    assert first == second


def test_a_model_without_classes_is_judged_by_its_scores() -> None:
    program = tiny_program(depth=4, classes=1)
    found = search(
        program, tiny_images(program.spec, 4), int(0.85 * total_macs(program.spec)), reference=program, say=print
    )
    assert found.agreement is None and found.drift > 0 and "keep their class" not in found.summary


def test_a_budget_out_of_reach_is_refused() -> None:
    program = tiny_program(depth=2)
    with pytest.raises(BudgetError, match="at least"):
        search(program, tiny_images(program.spec, 2), total_macs(program.spec) // 3, reference=program, say=print)


def test_few_plans_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    program = tiny_program(depth=12)
    tried: list[ProgramSpec] = []

    def judge(_: object, spec: ProgramSpec, images: int) -> Found:
        tried.append(spec)
        return Found(spec=spec, drift=1 / len(tried), agreement=None, images=images)

    monkeypatch.setattr(_Judge, "judge", judge)
    search(program, tiny_images(program.spec, 2), int(0.7 * total_macs(program.spec)), reference=program, say=print)
    plans = {spec.merges for spec in tried}
    assert len(plans) == len(tried) <= 4 * SCREENED_PLANS


@pytest.mark.parametrize("always", [False, True])
def test_both_variants_of_a_plan_are_judged(always: bool) -> None:
    program = tiny_program(depth=6, image=(96, 96), tokens="2:12,4:6", shift=True)
    images, budget, said = tiny_images(program.spec, 12), total_macs(program.spec), list[str]()
    found = follow(program, images, budget, reference=program, say=said.append, always=always).chosen
    assert len(said) == 3 and found.images == 12 and found.macs <= budget
    assert found.spec.adaptive >= always
    assert np.array_equal(found.shifts["b01_mhsa.merge.shift"], program.weights["b01_mhsa.merge.shift"])


@pytest.mark.parametrize(
    ("gained", "follows"),
    [((0.4, 0.4, 0.4, 0.5), True), ((-3.0, 1.0, 1.0, -0.5), True), ((-0.4, -0.4, -0.4, -0.5), False)],
)
def test_numbers_follow_the_image_unless_that_drifts_surely_more(
    gained: tuple[float, ...], follows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tiny_program(depth=6, image=(96, 96), tokens="2:12,4:6", shift=True)
    images, budget, said = tiny_images(program.spec, 4), total_macs(program.spec), list[str]()
    asked: list[tuple[bool, int]] = []

    def drifts(_: object, spec: ProgramSpec, half: int) -> torch.Tensor:
        asked.append((spec.adaptive, half))
        return torch.tensor([0.0 if spec.adaptive else gain for gain in gained[half::2]])

    monkeypatch.setattr(_Judge, "drifts", drifts)
    found = follow(program, images, budget, reference=program, say=said.append)
    assert asked == [(False, 1), (True, 1), (False, 0), (True, 0)]
    assert found.gain is not None and found.gain.images == 4 and found.gain.loses != follows
    assert found.gain.mean == pytest.approx(np.mean(gained))
    assert found.gain.error == pytest.approx(np.std(gained) / 2)
    assert found.chosen.spec.adaptive == follows and said[0] == found.gain.summary
    assert f"drift {'less' if np.mean(gained) > 0 else 'more'} by {abs(np.mean(gained)):.3g}, " in said[0]


def test_halves_of_the_images_are_judged_by_thresholds_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    program = tiny_program(depth=6, image=(96, 96), tokens="2:12,4:6", shift=True)
    images, seen = tiny_images(program.spec, 5), list[Sequence[torch.Tensor]]()

    def thresholds(given: Program, work: Sequence[torch.Tensor], *_: object) -> ProgramSpec:
        seen.append(work)
        return given.spec

    monkeypatch.setattr(module, "follow_images", thresholds)
    monkeypatch.setattr(module, "BATCH", 3)
    found = follow(program, images, total_macs(program.spec), reference=program, say=print)
    assert found.gain is not None and (found.gain.mean, found.gain.error, found.gain.images) == (0.0, 0.0, 5)
    assert [[len(batch) for batch in work] for work in seen] == [[3, 2], [2, 1], [1, 1]]
    one, other = (torch.cat(list(work)) for work in seen[1:])
    torch.testing.assert_close(torch.cat([one, other]).sum(dim=0), torch.cat(list(seen[0])).sum(dim=0))
    alone = follow(program, images[:1], total_macs(program.spec), reference=program, say=print)
    assert alone.gain is None and alone.chosen is alone.fixed


def test_what_is_as_good_as_fixed_follows_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    program = tiny_program(depth=6, image=(96, 96), tokens="2:12,4:6", shift=True)
    monkeypatch.setattr(_Judge, "drifts", lambda *_: torch.zeros(2))
    found = follow(program, tiny_images(program.spec, 4), total_macs(program.spec), reference=program, say=print)
    assert found.gain is not None and not found.gain.loses and found.chosen is found.follows
