"""Sampled requests with informed signals: the confusion matrix is what comes out, and knowledge is measured in nats."""

from __future__ import annotations

import numpy as np
import pytest

from sim.decoding.informed import ClassConfusion, Informed, window_classes
from sim.decoding.policies.overlapped.specbranch import SpecBranch
from sim.decoding.replay import replay
from traces.fits.acceptance.informed import InformedLaw

LAW = InformedLaw(mean=0.8, confidence_sd=1.5, persistence=0.5)


def test_the_window_class_says_how_many_are_accepted() -> None:
    assert window_classes((0, 0, 1, 0, 0), 2).tolist() == [2, 1, 0, 2, 1, 0]


def test_what_is_said_follows_the_confusion_matrix() -> None:
    confusion = ClassConfusion(((0.7, 0.2, 0.1), (0.1, 0.6, 0.3), (0.0, 0.3, 0.7)))
    trace = Informed(law=LAW, window=4, classes=confusion).sample(20_000, 0, np.random.default_rng(0))
    true = window_classes(trace.ranks, 4)
    said = np.argmax(trace.class_probs, axis=1)
    for kind, row in enumerate(confusion.said):
        shares = np.bincount(said[true == kind], minlength=3) / (true == kind).sum()
        stderr = np.sqrt(0.25 / (true == kind).sum())
        assert np.abs(shares - row).max() < 4 * stderr


def test_other_knowledge_leaves_the_outcomes_alone() -> None:
    """Common random numbers: what H-RAD knows, and how a draft reports, change no outcome."""
    knowing, blind = (
        Informed(law=LAW, window=4, classes=ClassConfusion.knowing(known), confidence_shift=shift).sample(
            300, 0, np.random.default_rng(0)
        )
        for known, shift in ((1.0, 0.0), (0.0, -1.0))
    )
    assert knowing.ranks == blind.ranks
    assert set(np.argmax(blind.class_probs, axis=1)) == {1}
    assert np.argmax(knowing.class_probs, axis=1).tolist() == window_classes(knowing.ranks, 4).tolist()
    assert all(low.max_prob < high.max_prob for low, high in zip(blind.signals, knowing.signals, strict=True))


def test_nats_are_those_of_the_joint_law() -> None:
    shares = np.array([0.4, 0.4, 0.2])
    assert ClassConfusion.knowing(0.0).nats(shares) == pytest.approx(0.0)
    assert ClassConfusion.knowing(1.0).nats(shares) == pytest.approx(-(shares * np.log(shares)).sum())
    assert ClassConfusion.of_nats(0.3, shares).nats(shares) == pytest.approx(0.3)
    bold = ClassConfusion.knowing(0.8, 0.5)
    assert bold.nats(shares) < ClassConfusion.knowing(0.8).nats(shares)
    with pytest.raises(ValueError, match="cannot be told"):
        ClassConfusion.of_nats(1.2, shares)


def test_every_policy_can_run_on_it() -> None:
    trace = Informed(law=LAW, window=5, classes=ClassConfusion.knowing(0.7), tail_depth=8).sample(
        120, 0, np.random.default_rng(0)
    )
    rounds = replay(SpecBranch(draft_length=5), trace)
    assert sum(each.num_emitted for each in rounds) == 120


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="three rows that sum to 1"):
        ClassConfusion(((1.0, 0.0, 0.0), (0.5, 0.0, 0.0), (0.0, 0.0, 1.0)))
    with pytest.raises(ValueError, match="chances"):
        ClassConfusion.knowing(1.5)
    with pytest.raises(ValueError, match="window must be at least 1"):
        Informed(law=LAW, window=0)
