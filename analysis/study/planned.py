"""A pair on hardware one does not have: its latencies from shapes and data sheets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from executor.models.names import FETCHED, resolve_model
from sim.decoding.model_shapes import SHAPES, ModelShape, named_shape
from sim.latency.roofline import Hardware, RooflineLatency, check_memory


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A pair and its devices, as on the command line. draft_hardware: empty when the draft lives on the target's."""

    target: str
    draft: str
    hardware: str = "h100"
    num_devices: int = 1
    draft_hardware: str = ""
    bits: float = 16.0
    context_tokens: int = 1024
    bandwidth_share: float = 0.9
    peak_share: float = 0.7
    layer_s: float = 2e-5
    host_s: float = 5e-4
    uncertainty: float = 0.2
    trusts_remote_code: bool = False

    def latency(self) -> RooflineLatency:
        """The roofline; ValueError when the pair does not fit its devices."""
        if not 0 < self.bits <= 64:
            raise ValueError(f"a weight has more than 0 and at most 64 bits, but got {self.bits:g}.")
        if self.context_tokens < 1:
            raise ValueError(f"a context holds at least 1 token, but got {self.context_tokens}.")
        target_device = self._device(self.hardware, self.num_devices)
        latency = RooflineLatency(
            target=shape_of_model(self.target, trusts_remote_code=self.trusts_remote_code),
            draft=shape_of_model(self.draft, trusts_remote_code=self.trusts_remote_code),
            target_hardware=target_device,
            draft_hardware=self._device(self.draft_hardware, 1) if self.draft_hardware else target_device,
            host_s=self.host_s,
            bytes_per_weight=self.bits / 8,
            uncertainty=self.uncertainty,
        )
        check_memory(latency, self.context_tokens, is_shared=not self.draft_hardware)
        return latency

    def _device(self, name: str, num_devices: int) -> Hardware:
        return Hardware.named(
            name,
            num_devices=num_devices,
            bandwidth_share=self.bandwidth_share,
            peak_share=self.peak_share,
            layer_s=self.layer_s,
        )


def shape_of_model(name: str, *, trusts_remote_code: bool = False) -> ModelShape:
    """A shape by its short name, or of a Hugging Face id or folder by its config."""
    if name in SHAPES or ("/" not in name and name not in FETCHED and not Path(name).exists()):
        return named_shape(name)
    from executor.models.sources.hugging_face import HuggingFaceSource
    from executor.models.stored.gguf_files import local_path

    folder = local_path(resolve_model(name, "target"))
    return HuggingFaceSource(folder, trusts_remote_code=trusts_remote_code).shape()
