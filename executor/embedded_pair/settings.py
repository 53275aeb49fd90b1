"""What a training of the embedded pair depends on, and the presets: the shipped pair, a trial run, a larger pair."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from executor.embedded_pair.shapes import Shape
from executor.embedded_pair.training.optimisation import Optimisation
from executor.embedded_pair.training.unlikelihood import UnlikelihoodPlan


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Everything that a training depends on, beside the Python version that supplies the text.

    draft_shapes: by folder name. unlikelihood: None trains on text alone.
    num_processes: processes of one thread each that share a batch (1 on a GPU).
    library: folder of a standard library to learn from; None is the running Python's.
    num_own_texts: prompts that the target continues for the drafts to learn from, by num_own_tokens each.
    report_every, save_every: in steps.
    """

    device: str
    target_shape: Shape
    draft_shapes: Mapping[str, Shape]
    target: Optimisation
    unlikelihood: UnlikelihoodPlan | None
    distillation: Optimisation
    target_name: str = "target"
    seed: int = 0
    num_processes: int = 1
    use_compile: bool = True
    use_bfloat16: bool = True
    vocab_size: int = 2048
    max_length: int = 1024
    library: Path | None = None
    num_own_texts: int = 640
    num_own_tokens: int = 192
    own_text_batch: int = 128
    num_evaluation_windows: int = 24
    report_every: int = 50
    save_every: int = 200

    def __post_init__(self) -> None:
        if self.device != "cpu" and self.num_processes != 1:
            raise ValueError(f"several processes share one CPU only; {self.device} needs num_processes=1.")


EMBEDDED_TARGET = Shape(num_layers=12, hidden_size=192, intermediate_size=512)
EMBEDDED_DRAFTS = {
    # Two blocks can copy what followed an earlier occurrence of the newest tokens; one cannot.
    "draft": Shape(num_layers=2, hidden_size=256, intermediate_size=688),
    "draft_small": Shape(num_layers=1, hidden_size=256, intermediate_size=688),
}


def embedded_preset() -> TrainingSettings:
    """The shipped pair: some minutes of one GPU (QUALITY.md states what it reached).

    Models of this size leave a GPU waiting for Python, so compilation would cost more than it saves.
    """
    return TrainingSettings(
        device="cuda",
        target_shape=EMBEDDED_TARGET,
        draft_shapes=EMBEDDED_DRAFTS,
        target=Optimisation(num_steps=1500, batch_size=64, sequence_length=512, learning_rate=3e-3, max_minutes=1.5),
        unlikelihood=UnlikelihoodPlan(
            optimisation=Optimisation(
                num_steps=100,
                batch_size=32,
                sequence_length=512,
                learning_rate=8e-4,
                decay_start=0.0,
                warmup_steps=5,
                max_minutes=0.5,
            ),
            num_prompts=128,
        ),
        distillation=Optimisation(
            num_steps=4000, batch_size=64, sequence_length=512, learning_rate=5e-3, max_minutes=1.3
        ),
        use_compile=False,
        num_own_texts=6144,
        own_text_batch=1024,
        report_every=250,
        save_every=10_000,
    )


def cpu_preset() -> TrainingSettings:
    """The shipped pair's shapes on two CPU cores, for about 50 minutes and with less text."""
    return TrainingSettings(
        device="cpu",
        num_processes=2,
        target_shape=EMBEDDED_TARGET,
        draft_shapes=EMBEDDED_DRAFTS,
        target=Optimisation(num_steps=1750, batch_size=24, sequence_length=256, learning_rate=3e-3, max_minutes=32),
        unlikelihood=UnlikelihoodPlan(
            optimisation=Optimisation(
                num_steps=300,
                batch_size=8,
                sequence_length=384,
                learning_rate=8e-4,
                decay_start=0.0,
                warmup_steps=5,
                max_minutes=5.5,
            )
        ),
        distillation=Optimisation(
            num_steps=600, batch_size=24, sequence_length=256, learning_rate=5e-3, max_minutes=8.5
        ),
    )


def quick_preset() -> TrainingSettings:
    """A trial of the whole path in seconds; the models are of no use."""
    return TrainingSettings(
        device="cpu",
        target_shape=Shape(num_layers=2, hidden_size=64, intermediate_size=128),
        draft_shapes={"draft": Shape(num_layers=1, hidden_size=64, intermediate_size=64)},
        target=Optimisation(num_steps=40, batch_size=8, sequence_length=64, learning_rate=6e-3, warmup_steps=5),
        unlikelihood=UnlikelihoodPlan(
            optimisation=Optimisation(num_steps=2, batch_size=2, sequence_length=64, learning_rate=1e-4),
            num_prompts=4,
            num_new_tokens=32,
        ),
        distillation=Optimisation(num_steps=20, batch_size=8, sequence_length=64, learning_rate=6e-3, warmup_steps=5),
        use_compile=False,
        use_bfloat16=False,
        vocab_size=512,
        max_length=512,
        num_own_texts=8,
        num_own_tokens=32,
        own_text_batch=4,
        num_evaluation_windows=4,
        report_every=10,
        save_every=20,
    )


def gpu_preset() -> TrainingSettings:
    """A target of about 310 M parameters and drafts of 16 M and 52 M, for about 8 minutes of one H200.

    The time limits carry the figure: the throughput has not been measured. Text of 10 M tokens is little for this
    target, so more steps would overfit rather than help.
    """
    return TrainingSettings(
        device="cuda",
        target_shape=Shape(num_layers=24, hidden_size=1024, intermediate_size=2816),
        draft_shapes={
            "draft": Shape(num_layers=2, hidden_size=768, intermediate_size=2048),
            "draft_large": Shape(num_layers=4, hidden_size=1024, intermediate_size=2816),
        },
        target=Optimisation(
            num_steps=1200, batch_size=32, sequence_length=1024, learning_rate=1e-3, warmup_steps=100, max_minutes=4.5
        ),
        unlikelihood=UnlikelihoodPlan(
            optimisation=Optimisation(
                num_steps=60, batch_size=16, sequence_length=1024, learning_rate=1e-4, warmup_steps=5, max_minutes=0.75
            ),
            num_prompts=128,
        ),
        distillation=Optimisation(
            num_steps=1200, batch_size=32, sequence_length=1024, learning_rate=2e-3, max_minutes=2
        ),
        max_length=2048,
        num_own_texts=2048,
        own_text_batch=512,
    )


PRESETS: Mapping[str, Callable[[], TrainingSettings]] = {
    "embedded": embedded_preset,
    "cpu": cpu_preset,
    "quick": quick_preset,
    "gpu": gpu_preset,
}


def shortened(settings: TrainingSettings, max_minutes: float) -> TrainingSettings:
    """The same training in at most about `max_minutes` of wall time, shared among its stages: 70 %, 10 % and 20 %.

    Schedules then end early rather than being cut off. Writing the target's own text is not counted.
    """
    unlikelihood = settings.unlikelihood
    if unlikelihood is not None:
        limited = replace(unlikelihood.optimisation, max_minutes=0.1 * max_minutes)
        unlikelihood = replace(unlikelihood, optimisation=limited)
    return replace(
        settings,
        target=replace(settings.target, max_minutes=0.7 * max_minutes),
        unlikelihood=unlikelihood,
        distillation=replace(settings.distillation, max_minutes=0.2 * max_minutes),
    )
