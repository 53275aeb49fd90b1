"""Real traffic is read whole: as many requests, with the means, that its page states."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from traces.importers.base import ForeignTraceError
from traces.importers.traffic.catalog import read_lengths, read_measured, read_traffic, read_windows
from traces.importers.traffic.servegen import GapFamily

TRACES = Path(__file__).parents[4] / ".." / "shared" / "data" / "traces"
pytestmark = pytest.mark.skipif(not TRACES.exists(), reason="the recorded traffic is not beside this checkout")


@pytest.mark.parametrize(
    ("name", "num_requests", "mean_prompt", "mean_output", "last_s"),
    [
        ("azure_llm_2023_code.csv.gz", 8819, 2047.85, 27.88, 3435.948056),
        ("azure_llm_2023_conv.csv.gz", 19366, 1154.70, 211.13, 3501.721937),
        ("vidur_splitwise_code.csv.gz", 8819, 2047.85, 27.88, 3435.948056),
        ("vidur_splitwise_conv.csv.gz", 19366, 1154.70, 211.13, 3501.721937),
        ("mooncake_conversation.jsonl.gz", 12031, 12035.06, 342.62, 3536.999),
        ("mooncake_synthetic.jsonl.gz", 3993, 15325.48, 149.12, 1022.025),
        ("dsdsim_gsm8k_trace.jsonl.gz", 400, 72.485, 137.75, 9.975),
        ("vllm_real_rtx4090_llama31_8b.jsonl.gz", 300, 857.46, 652.51, 29.1005),
        ("vllm_real_rtxpro6000_llama31_8b.jsonl.gz", 300, 857.46, 652.51, 29.1212),
    ],
)
def test_counts_and_means_are_those_published(
    name: str, num_requests: int, mean_prompt: float, mean_output: float, last_s: float
) -> None:
    read = read_traffic(TRACES / name)
    assert read.num_requests == num_requests
    assert read.prompt_tokens.mean() == pytest.approx(mean_prompt, abs=0.006)
    assert read.output_tokens.mean() == pytest.approx(mean_output, abs=0.006)
    assert (read.arrival_s[0], read.arrival_s[-1]) == (0.0, pytest.approx(last_s, abs=5e-5))


@pytest.mark.parametrize("kind", ["code", "conv"])
def test_azure_and_vidur_hold_the_same_hour(kind: str) -> None:
    azure, vidur = (read_traffic(TRACES / f"{name}_{kind}.csv.gz") for name in ("azure_llm_2023", "vidur_splitwise"))
    np.testing.assert_allclose(azure.arrival_s, vidur.arrival_s, atol=1e-9)
    assert azure.prompt_tokens.tolist() == vidur.prompt_tokens.tolist()
    assert azure.output_tokens.tolist() == vidur.output_tokens.tolist()


def test_mooncakes_blocks_are_kept() -> None:
    read = read_traffic(TRACES / "mooncake_conversation.jsonl.gz")
    assert read.prefix_blocks is not None
    assert read.prefix_block_tokens == 512
    assert read.prefix_blocks[3] == (0, 42, 43, 44, 45)
    assert [len(blocks) for blocks in read.prefix_blocks] == (-(-read.prompt_tokens // 512)).tolist()


def test_vidurs_summaries_are_lengths_only() -> None:
    path = TRACES / "vidur_arxiv_summarization.csv.gz"
    lengths = read_lengths(path)
    assert (lengths.num_requests, lengths.prompt_tokens[0], lengths.output_tokens[0]) == (28257, 3772, 54)
    assert lengths.prompt_tokens.mean() == pytest.approx(2588.078, abs=1e-3)
    with pytest.raises(ForeignTraceError, match="not when they arrive; read it with read_lengths"):
        read_traffic(path)


@pytest.mark.parametrize(("chunk", "num_active", "num_gamma"), [(0, 1301, 230), (1, 248, 39), (10, 947, 938)])
def test_servegens_clients_are_two_weeks_of_windows(chunk: int, num_active: int, num_gamma: int) -> None:
    path = TRACES / f"servegen_m_large_chunk-{chunk}-trace.csv.gz"
    windows = read_windows(path)
    assert (len(windows.start_s), windows.window_s) == (2016, 600.0)
    assert (windows.arrivals_per_s > 0).sum() == num_active
    assert windows.family.count(GapFamily.GAMMA) == num_gamma
    gamma = np.array([family is GapFamily.GAMMA for family in windows.family])
    np.testing.assert_allclose(windows.gap_cv[gamma], windows.shape[gamma] ** -0.5, rtol=1e-6)
    with pytest.raises(
        ForeignTraceError, match="describes arrivals by window, and no requests; read it with read_windows"
    ):
        read_traffic(path)


def test_measured_times_never_fall() -> None:
    measured = read_measured(TRACES / "vllm_real_rtx4090_llama31_8b.jsonl.gz")
    times = (measured.arrival_s, measured.queued_s, measured.scheduled_s, measured.first_token_s, measured.last_token_s)
    for earlier, later in itertools.pairwise(times):
        assert (later - earlier).min() >= -1e-9
    assert (measured.queued_s - measured.arrival_s).min() == pytest.approx(0, abs=1e-9)
    assert (measured.scheduled_s - measured.queued_s).mean() == pytest.approx(65.191, abs=1e-3)
    assert 0.01 < np.nanmean(measured.tpot_s) < 0.1
    assert measured.ttft_s.mean() > 65


def test_measured_step_times_are_not_traffic() -> None:
    with pytest.raises(ForeignTraceError, match="is not traffic in a known format"):
        read_traffic(TRACES / "splitwise_perf_model.csv.gz")
