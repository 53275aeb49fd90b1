"""Step costs of a batch on hardware one does not own: a roofline, in the form that is fitted to measured servers."""

from __future__ import annotations

from sim.decoding.model_shapes import ModelShape
from sim.latency.roofline import Hardware, RooflineLatency
from traces.fits.step_costs import ForwardCost, StepCosts

SHARPNESS = 8.0  # how sharply the two roofs meet: at the corner a forward takes 9% more than either
MEMORY_SHARE = 0.9  # of a device's memory that an engine takes: vLLM's gpu_memory_utilization


def step_costs_of(latency: RooflineLatency) -> StepCosts:
    """Weights are read once a forward, whatever the batch; tokens cost their products, contexts the reading of their cache.

    FLOPs of attention are left out: where they count, reading the cache costs more.
    """
    return StepCosts(
        target=_forward(latency.target, latency.target_hardware, latency),
        draft=_forward(latency.draft, latency.draft_hardware, latency),
        host_s=latency.host_s,
    )


def _forward(model: ModelShape, device: Hardware, latency: RooflineLatency) -> ForwardCost:
    weights_s = model.num_step_parameters * latency.bytes_per_weight / device.bandwidth_bytes_per_s
    return ForwardCost(
        floor_s=device.overhead_s + model.num_layers * device.layer_s + weights_s,
        token_s=2.0 * model.num_active / device.peak_flops_per_s,
        sharpness=SHARPNESS,
        context_s=model.kv_numbers * latency.bytes_per_kv / device.bandwidth_bytes_per_s,
    )


def kv_tokens_of(latency: RooflineLatency, *, with_draft: bool, memory_share: float = MEMORY_SHARE) -> int:
    """Tokens that the target's devices hold beside the weights; with_draft: the draft's weights and cache lie there, too.

    Raises ValueError where the weights leave no room.
    """
    models = [latency.target, latency.draft] if with_draft else [latency.target]
    device = latency.target_hardware
    weights = sum(model.num_parameters for model in models) * latency.bytes_per_weight
    per_token = sum(model.kv_numbers for model in models) * latency.bytes_per_kv
    room = memory_share * device.memory_bytes - weights
    if room < per_token:
        who = "the pair's weights take" if with_draft else "the target's weights take"
        raise ValueError(
            f"{who} {weights / 1e9:.0f} GB of the {memory_share * device.memory_bytes / 1e9:.0f} GB that an engine has on "
            f"{device.name}: there is no room for a cache; give more devices or fewer bits."
        )
    return int(room / per_token)
