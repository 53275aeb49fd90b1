"""The draft that ships for SmolLM2: what it weighs, and that no method changes its target's tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from safetensors import safe_open

from executor.models.names import DISTILLED_DRAFTS, resolve_model
from executor.models.settings import EngineSettings, PairSettings
from executor.models.stored.distilled import HEAD_TOKENS, WEIGHTS_FILE, read_draft_card
from executor.pair import Session
from executor.request import Request
from sim.decoding.policies.catalog import parse_policy
from traces.schema import Sampling

METHODS = (
    "pearl:draft_length=6",
    "specbranch:uses_hrad=false,draft_length=6,max_branches=4",
    "outcome_hedging:max_branches=6,draft_length=4",
)
MAX_BYTES = 16_000_000


def test_it_is_small_and_says_what_it_was_made_of() -> None:
    folder = DISTILLED_DRAFTS / "smollm2"
    card = read_draft_card(folder)
    assert card.target == "smollm2"
    assert card.training["tokens_seen"]
    assert (folder / WEIGHTS_FILE).stat().st_size <= MAX_BYTES
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as weights:
        head_tokens = weights.get_tensor(HEAD_TOKENS)
    assert (head_tokens[1:] > head_tokens[:-1]).all()
    assert len(head_tokens) >= 4096
    assert (DISTILLED_DRAFTS / "QUALITY.md").is_file()


@pytest.fixture(scope="module")
def pair() -> Iterator[Session]:
    try:
        resolve_model("smollm2", "target")
    except ValueError as absent:
        pytest.skip(str(absent))
    with Session(PairSettings(target="smollm2", draft="smollm2", engine=EngineSettings(capacity=128))) as opened:
        yield opened


@pytest.mark.long
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_method_emits_the_tokens_of_plain_decoding(pair: Session, temperature: float) -> None:
    request = Request(
        prompt_id="sums",
        tokens=pair.encode("<|im_start|>user\nWhat is 12 times 3?<|im_end|>\n<|im_start|>assistant\n"),
        max_new_tokens=10,
        sampling=Sampling(temperature),
        seed=3,
    )
    plain = pair.run(request, parse_policy("autoregressive"))
    assert len(plain.tokens) > 4
    for label in METHODS:
        assert pair.run(request, parse_policy(label)).tokens == plain.tokens, label
