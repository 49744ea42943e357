"""The table of the phases: one way through, from the first to the last."""

from __future__ import annotations

import pytest

from pooldrain.phases import NEXT, Phase, PhaseError, move


def test_the_table_leads_from_the_start_through_every_phase_in_their_order_to_the_end() -> None:
    passed: list[Phase] = []
    phase: Phase | None = None
    while (phase := NEXT[phase]) is not None:
        passed.append(phase)
    assert passed == list(Phase)


@pytest.mark.parametrize("before", NEXT)
@pytest.mark.parametrize("phase", Phase)
def test_only_the_next_phase_may_be_entered(before: Phase | None, phase: Phase) -> None:
    if NEXT[before] is phase:
        assert move(before, phase) is phase
    else:
        with pytest.raises(PhaseError, match=f"^{phase.value} does not follow "):
            move(before, phase)
