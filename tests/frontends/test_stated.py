from __future__ import annotations

from edgevit.frontends.stated import class_names, say_assumed, with_statements
from tests.tiny import tiny_program, tiny_spec


def test_what_the_user_states_stands_in_the_origin() -> None:
    program = tiny_program()
    stated = with_statements(program, license="mit", credit="me").spec.origin
    assert stated == program.spec.origin | {"license": "mit", "credit": "me"}
    assert with_statements(program, license=None, credit=None) is program


def test_names_are_those_stated_if_their_number_fits() -> None:
    spec = tiny_spec(classes=2)
    assert class_names(spec, ("a", "b"), "", print) == ("a", "b")
    assert class_names(spec, ("a", "b", "c"), "fb_in1k", print) == ()


def test_an_assumption_names_its_numbers_and_the_options_against_it() -> None:
    said: list[str] = []
    say_assumed(tiny_spec().image, "some_model", said.append)
    assert "assumed of some_model" in said[0] and "mean 0.485 0.456 0.406" in said[0] and "--mean" in said[0]
