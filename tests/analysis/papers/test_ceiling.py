"""What a predictor could bring: oracles are ordered by what they know, and cheap drafts need none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.papers.ceiling import CLASSES, HAZARDS, MARGIN, PEARL, POSITIONS, WITHOUT, Ceiling, ceiling_of
from sim.decoding.informed import Informed
from sim.latency.constant import ConstantLatency
from tests.analysis.command import call
from traces.fits.acceptance.informed import InformedLaw

RUN = Path(__file__).parents[2] / "data" / "run_v1"


@pytest.fixture(scope="module")
def found() -> Ceiling:
    model = Informed(law=InformedLaw(mean=0.8, confidence_sd=1.0, hidden_sd=1.5), window=4, tail_depth=10)
    traces = [model.sample(150, index, rng) for index, rng in enumerate(np.random.default_rng(0).spawn(8))]
    return ceiling_of(traces, ConstantLatency(draft_s=1 / 6, verify_s=1.0), auc={})


def test_who_knows_more_is_faster(found: Ceiling) -> None:
    assert found.speedups[WITHOUT] < found.speedups[CLASSES] < found.speedups[POSITIONS]
    assert found.speedups[PEARL] > 1
    # Two of the three scalars are functions of the third here: hazards know no more than the margin, and lose nothing by it.
    assert found.speedups[HAZARDS] == pytest.approx(found.speedups[MARGIN], rel=0.05)
    assert found.speedups[HAZARDS] < found.speedups[POSITIONS] * 1.2
    nats, speeds = zip(*found.by_nats, strict=True)
    assert nats[0] == pytest.approx(0.0)
    assert list(nats) == sorted(nats)
    assert speeds[-1] == pytest.approx(found.speedups[CLASSES])
    assert speeds[-1] > speeds[0]


def test_the_information_needed_lies_between_nothing_and_everything(found: Ceiling) -> None:
    assert found.needed_nats is not None
    assert 0 <= found.needed_nats < found.class_nats
    assert found.class_nats == pytest.approx(-sum(share * np.log(share) for share in found.class_shares))
    assert "nats on" in found.verdict


def test_the_command_reads_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "c.json"
    where = ("--run", str(RUN), "--calibration", str(RUN / "calibration.json"))
    assert call("hrad", "ceiling", *where, "--output", str(output)) == 0
    assert POSITIONS in capsys.readouterr().out
    (numbers,) = json.loads(output.read_text())
    assert 0.5 < numbers["auc"]["target's entropy"] < 1
