"""Who answers the probes, and what, in each phase."""

from __future__ import annotations

import pytest

from pooldrain.phases import Phase
from pooldrain.probes import AnsweredBy, Probes


def test_our_own_are_answered_in_every_phase() -> None:
    probes = Probes()
    for phase in Phase:
        alive, ready = probes.answer("GET", "/livez", phase), probes.answer("HEAD", "/readyz", phase)
        assert alive is not None
        assert ready is not None
        assert alive.status == 200
        assert ready.status == (200 if phase is Phase.READY else 503)


@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS"])
def test_another_method_is_the_applications_affair(method: str) -> None:
    assert Probes().answer(method, "/livez", Phase.READY) is None


def test_the_applications_own_are_its_own_until_the_shutdown_is_announced() -> None:
    probes = Probes("app")
    assert probes.answer("GET", "/readyz", Phase.READY) is None
    refusal = probes.answer("GET", "/readyz", Phase.ANNOUNCING)
    alive = probes.answer("GET", "/livez", Phase.DRAINING)
    assert refusal is not None
    assert alive is not None
    assert (refusal.status, alive.status) == (503, 200)


def test_without_probes_nothing_is_answered() -> None:
    probes = Probes("off")
    assert all(probes.answer("GET", path, phase) is None for path in ("/livez", "/readyz") for phase in Phase)


@pytest.mark.parametrize(
    ("answered_by", "uncounted"),
    [("own", {"/alive", "/ready", "/status"}), ("app", {"/alive", "/ready", "/status"}), ("off", {"/status"})],
)
def test_probes_are_never_counted_wherever_they_are(answered_by: AnsweredBy, uncounted: set[str]) -> None:
    assert Probes(answered_by, "/alive", "/ready", frozenset({"/status"})).uncounted == uncounted


def test_another_uncounted_path_is_the_applications() -> None:
    assert Probes(others=frozenset({"/status"})).answer("GET", "/status", Phase.READY) is None
