"""The roofline command: what a pair would take on hardware one does not have, as a calibration for explore and simulate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sim.decoding.model_shapes import SHAPES, ModelShape, named_shape
from sim.latency.roofline import Hardware, RooflineLatency, as_calibration, check_memory


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

    def latency(self) -> RooflineLatency:
        """The roofline, refused when the pair does not fit its devices."""
        if not 0 < self.bits <= 64:
            raise ValueError(f"a weight has more than 0 and at most 64 bits, but got {self.bits:g}.")
        if self.context_tokens < 1:
            raise ValueError(f"a context holds at least 1 token, but got {self.context_tokens}.")
        target_device = self._device(self.hardware, self.num_devices)
        found = RooflineLatency(
            target=shape_of_model(self.target),
            draft=shape_of_model(self.draft),
            target_hardware=target_device,
            draft_hardware=self._device(self.draft_hardware, 1) if self.draft_hardware else target_device,
            host_s=self.host_s,
            bytes_per_weight=self.bits / 8,
        )
        check_memory(found, self.context_tokens, is_shared=not self.draft_hardware)
        return found

    def _device(self, name: str, num_devices: int) -> Hardware:
        return Hardware.named(
            name,
            num_devices=num_devices,
            bandwidth_share=self.bandwidth_share,
            peak_share=self.peak_share,
            layer_s=self.layer_s,
        )


def shape_of_model(name: str) -> ModelShape:
    """A shape by its short name, or of a Hugging Face id or folder by its config."""
    if name in SHAPES or ("/" not in name and not Path(name).exists()):
        return named_shape(name)
    from executor.models.sources.hugging_face import HuggingFaceSource

    return HuggingFaceSource(name).shape()


def plan_and_print(console: Console, planned: Planned, output: Path) -> None:
    """Write the calibration to a new file, and print what it amounts to."""
    if output.exists():
        raise ValueError(f"{output} exists already; name another place with --output.")
    latency = planned.latency()
    output.parent.mkdir(parents=True, exist_ok=True)
    as_calibration(latency, context_tokens=planned.context_tokens, uncertainty=planned.uncertainty).save(output)

    def ms(kind: str, num_tokens: int, num_rows: int = 1) -> float:
        return 1e3 * float(latency.mean_array(kind, num_tokens, num_rows, planned.context_tokens))

    table = Table(title=f"{planned.target} and {planned.draft}", title_justify="left", box=None, pad_edge=False)
    table.add_column(f"one forward after {planned.context_tokens} tokens")
    table.add_column("ms", justify="right")
    table.add_column("on")
    target, draft = latency.target_hardware.name, latency.draft_hardware.name
    for what, kind, num_tokens, num_rows, place in (
        ("target, 1 token", "verify", 1, 1, target),
        ("target, 8 tokens", "verify", 8, 1, target),
        ("target, 64 tokens", "verify", 64, 1, target),
        ("draft, 1 token", "draft", 1, 1, draft),
        ("draft, 8 branches", "branch", 1, 8, draft),
    ):
        table.add_row(what, f"{ms(kind, num_tokens, num_rows):.3g}", place)
    console.print(table)
    console.print(f"target over draft: {ms('verify', 1) / ms('draft', 1):.1f}", highlight=False)
    console.print(f"calibration: {output}; try policies with: specbranch explore --trace RUN --calibration {output}")
    if not planned.draft_hardware:
        console.print("both models on the same devices: add --placement shared_device --interference 1.5")
