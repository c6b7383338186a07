"""From a share that is to be removed to a price and to a threshold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from small_trainings import prepared

from l2c_export.training.lessons import CALIBRATE
from l2c_export.training.result import trade_off
from l2c_export.training.scores import threshold_for

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
def test_the_price_for_a_target_is_what_this_share_is_not_worth(tmp_path, share):
    training = prepared(tmp_path, error="output")
    lambda_ = training.trainer.calibrate(share)
    logits = torch.zeros(3, 6)
    worth = -sum(training.trainer.errors(logits, training.trainer.lessons(CALIBRATE, n))[1] for n in range(8)) / 8
    pushed_down = lambda_ * 0.25 > worth
    assert float(pushed_down.float().mean()) == pytest.approx(share, abs=1 / 18)


def test_no_price_is_negative(tmp_path, monkeypatch):
    trainer = prepared(tmp_path, error="output").trainer
    monkeypatch.setattr(trainer, "errors", lambda logits, _: (None, torch.ones_like(logits)))  # computing makes it worse
    assert trainer.calibrate(0.4) == 0


@pytest.mark.parametrize(("logits", "warned"), [(torch.zeros(18), True), (torch.linspace(-1, 1, 18), False)])
def test_a_target_that_ties_exceed_is_said(tmp_path, logits, warned):
    said = []
    training = prepared(tmp_path, target_reduction=0.65)
    training.report = said.append
    training.trainer.logits.data = logits.reshape(3, 6)
    removed = trade_off(training).chosen.removed
    assert (removed == 1) == warned
    assert any("100% of the sublayers are removed, not 65%: many scores are equal" in line for line in said) == warned


@given(scores=st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.7, 0.9]), min_size=1, max_size=12), share=st.floats(0, 1))
@example(scores=[n / 32 for n in range(25)], share=0.28)  # 0.28 * 25 is 7.000000000000001
def test_a_threshold_removes_at_least_what_is_asked_and_no_more_than_ties(scores, share):
    values = np.array(scores, np.float32)
    threshold = threshold_for(values, share)
    assert (values <= np.float32(threshold)).mean() >= share - 1e-5
    assert (values < np.float32(threshold)).mean() < share or threshold == 0
