"""Labels and features: by hand, and online against one pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from executor.hrad.dataset import accepted_lengths, classes_of, drafted_signals
from executor.hrad.features import class_inputs, class_inputs_along
from executor.hrad.predictor import Predictor
from executor.request import Request
from executor.roles.target_side import TargetSide, load_target
from tests.executor.hrad.small_pair import PROMPT
from tests.settings import load, pair_settings
from traces.schema import FinishReason, RequestTrace, Sampling, Signal


def test_labels_follow_the_accepted_run() -> None:
    ranks = [0, 0, 0, 2, 0, 0, 1, 0]
    assert accepted_lengths(ranks, 3).tolist() == [3, 2, 1, 0, 2, 1]
    assert classes_of(np.array([3, 2, 1, 0]), 3).tolist() == [2, 1, 1, 0]
    assert accepted_lengths([0, 0], 3).tolist() == []  # too short for a full draft: nothing is known


def test_drafted_signals_leave_the_path_after_the_wrong_token() -> None:
    def signal(value: float) -> Signal:
        return Signal(value, value, value)

    trace = RequestTrace(
        request_id=0,
        prompt_id="p",
        num_prompt_tokens=1,
        max_new_tokens=4,
        temperature=0.0,
        finish_reason=FinishReason.MAX_TOKENS,
        ranks=(0, 2, 0, 0),
        signals=tuple(signal(v) for v in (10, 11, 12, 13)),
        tails={1: (signal(21), signal(22)), 4: (signal(31), signal(32))},
        tail_depth=2,
    )
    found = drafted_signals(trace, 2, 3)[..., 0]
    assert found.tolist() == [[10, 11, 21], [11, 21, 22]]


def test_inputs_are_normalised_blocks_and_the_embedding() -> None:
    features = torch.tensor([[[3.0, 4.0], [0.0, 0.1]]])
    found = class_inputs(features, torch.tensor([[7.0, -8.0, 9.0]]))
    scale = 2**0.5
    expected = [[0.6 * scale, 0.8 * scale, 0.0, scale, 7.0, -8.0, 9.0]]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["static", "hugging_face"])
def test_inputs_along_a_sequence_are_those_of_the_whole_forward(pair: tuple[str, str], kind: str) -> None:
    from transformers import AutoModelForCausalLM

    tokens, num_prompt = [*PROMPT, *range(70, 150)], len(PROMPT)
    engine = load(pair[0], engine=kind, capacity=256, num_feature_layers=2)
    with torch.inference_mode():
        found = torch.cat(list(class_inputs_along(engine, tokens, num_prompt)))
        model = AutoModelForCausalLM.from_pretrained(pair[0], dtype=torch.float32)
        kept: dict[int, Tensor] = {}
        for index in (1, 2):
            model.model.layers[index].register_forward_hook(lambda m, i, out, index=index: kept.update({index: out}))
        model(input_ids=torch.tensor([tokens]))
        embeddings = model.get_input_embeddings()(torch.tensor(tokens))
    blocks = [(kept[index] if isinstance(kept[index], Tensor) else kept[index][0]).reshape(-1, 128) for index in (1, 2)]
    assert len(found) == len(tokens) - num_prompt + 1
    for position in (0, 1, 40, 80):
        newest = num_prompt - 1 + position
        expected = class_inputs(torch.stack([b[newest - 1] for b in blocks])[None], embeddings[newest][None])[0]
        torch.testing.assert_close(found[position], expected, atol=1e-4, rtol=1e-4)


def test_features_of_rounds_are_those_of_one_pass(pair: tuple[str, str], predictor_folder: str) -> None:
    """Whatever was pending, accepted or rejected, online inputs equal the teacher-forced ones."""
    target, predictor = load_target(pair_settings(target=pair[0], capacity=256, hrad=predictor_folder))
    side = TargetSide(target, predictor)
    request = Request(prompt_id="p", tokens=PROMPT, max_new_tokens=60, sampling=Sampling(0.0))
    seen: list[Tensor] = []

    class Spy(Predictor):
        def from_inputs(self, inputs: Tensor) -> Tensor:
            seen.append(inputs.clone())
            return super().from_inputs(inputs)

    def verified(num_cached: int, last: int, pending: list[int]) -> tuple[int, int]:
        side.submit(pending, last=last, num_cached=num_cached)
        verdict = side.wait_verdict()
        return verdict.num_accepted, verdict.next_token

    predictor.__class__ = Spy  # type: ignore[assignment] # the very object, looked over the shoulder
    with torch.inference_mode():
        side.begin(request, predicts=True)
        reference = list(PROMPT)
        for _ in range(60):  # the target's own continuation, one token a time
            reference.append(verified(len(reference) - 1, reference[-1], [])[1])
        seen.clear()
        side.begin(request, predicts=True)
        ends = [len(PROMPT)]
        for right, wrong in ((3, 2), (0, 1), (4, 0), (1, 4), (0, 0), (2, 2)):
            at = ends[-1]
            pending = reference[at : at + right] + [(reference[at + right] + 1) % 200] * wrong
            num_accepted, next_token = verified(at - 1, reference[at - 1], pending)
            assert (num_accepted, next_token) == (right, reference[at + right])
            ends.append(at + right + 1)
        engine = load(pair[0], capacity=256, num_feature_layers=2)
        along = torch.cat(list(class_inputs_along(engine, reference, len(PROMPT))))
    assert len(seen) == len(ends)
    for inputs, end in zip(seen, ends, strict=True):
        torch.testing.assert_close(inputs[0], along[end - len(PROMPT)], atol=1e-5, rtol=1e-5)
