"""How a pair of models is run: the settings that every layer hands on whole, from the command line to the target's process.

Nothing heavy is imported here, so that the command line may read its defaults from these classes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace

from executor.models.names import EMBEDDED
from traces.schema import Rule

MAX_TIMEOUT_S = 1e6
DTYPES = ("float32", "float64", "bfloat16", "float16")


class EngineKind(enum.StrEnum):
    """How a model is run."""

    STATIC = "static"  # fast, Llama-type models
    HUGGING_FACE = "hugging_face"  # any causal language model
    RESIDENT = "resident"  # Llama-type models on a GPU: draft and target in one process, steps as graphs


class Layout(enum.StrEnum):
    """How the static engine keeps weights in memory on a CPU (`executor.models.engines.projections`)."""

    AUTO = "auto"  # for each shape the fastest, measured when the model is loaded
    PLAIN = "plain"
    PACKED = "packed"  # float32 only, as is the next
    BOTH = "both"  # plain for few rows, packed for more: twice the memory


class Transport(enum.StrEnum):
    """How the draft's process and the target's talk."""

    MAILBOX = "mailbox"  # shared memory: two processes of one machine, whatever devices they use
    DISTRIBUTED = "distributed"  # torch.distributed: NCCL between two GPUs, gloo otherwise


def parse_engine(name: str) -> EngineKind:
    """An engine by its name. Raises ValueError."""
    try:
        return EngineKind(name)
    except ValueError:
        raise ValueError(f"unknown engine {name!r}: choose {' or '.join(EngineKind)}.") from None


def parse_transport(name: str) -> Transport:
    """A transport by its name. Raises ValueError."""
    try:
        return Transport(name)
    except ValueError:
        raise ValueError(f"unknown transport {name!r}: choose {' or '.join(Transport)}.") from None


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How one model is run. device, dtype: as torch writes them.

    capacity: tokens that its cache can hold, prompt and branches included; None for all that the model knows, at most 8192.
    vocab_size: tokens that its head is cut to; None for all. num_feature_layers: last blocks whose hidden states it keeps.
    trusts_remote_code: whether code in the folder of the model may be run where transformers does not know its class.
    embedding_of: model whose embedding table a distilled draft reads, the target; a pair fills it in.
    layout: of the static engine's weights on a CPU; what was taken stands in a run's meta, as weight_layouts.
    """

    kind: EngineKind = EngineKind.STATIC
    device: str = "cpu"
    dtype: str = "float32"
    capacity: int | None = 1024
    vocab_size: int | None = None
    num_feature_layers: int = 0
    trusts_remote_code: bool = False
    embedding_of: str = ""
    layout: Layout = Layout.AUTO

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}: choose one of {', '.join(DTYPES)}.")
        if self.capacity is not None and self.capacity < 1:
            raise ValueError(f"capacity must be at least 1, but got {self.capacity}.")


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """A target and a draft of one vocabulary, by names as in `executor.models.names`, and how they are run.

    engine: of both models: `static` and `hugging_face` run the target in a process of its own; `resident` runs both in this
    process on two streams of one device, or the target in its own process on another device.
    target_device: where the target runs, if not on the engine's device.
    transport: how two processes talk; with `distributed` the resident target always has its own process. The mailbox is the
    default for two GPUs, too: what crosses is a few ids, which the host knows anyway.
    is_pinned: bind the two processes to one core each (CPU only; unpinned processes may share a core after a wake-up).
    timeout_s: longest wait for one answer of the target's process; when it takes longer it is killed and reported.
    hrad: folder of an H-RAD predictor of this very pair; `embedded` is the shipped one, an empty name runs none.
    verify_width: rows of every verification of the resident engine; 0 chooses by the tokens at hand.
    draft_sms: multiprocessors that the draft is confined to where both models share a GPU; 0 is all.
    ignores_generation_config: whether the rules that the target's makers decode with (`executor.models.engines.ruled`) are
    left out. allows_vocab_difference: whether tokenizers may differ in some tokens.
    rule: how drafted tokens are verified. Any but shared noise runs both models in this process, one after the other, under
    policies that draft serially; tokens then are those of the target's law, not of plain decoding with the same noise.
    """

    target: str = EMBEDDED
    draft: str = EMBEDDED
    engine: EngineSettings = field(default_factory=EngineSettings)
    target_device: str = ""
    transport: Transport = Transport.MAILBOX
    is_pinned: bool = True
    timeout_s: float = 60.0
    hrad: str = ""
    verify_width: int = 0
    draft_sms: int = 0
    ignores_generation_config: bool = False
    allows_vocab_difference: bool = False
    rule: Rule = Rule.SHARED

    def __post_init__(self) -> None:
        if self.verify_width < 0 or self.draft_sms < 0:
            raise ValueError(
                f"verify_width and draft_sms must be at least 0, but got {self.verify_width} and {self.draft_sms}."
            )
        if not 0 < self.timeout_s <= MAX_TIMEOUT_S:
            raise ValueError(f"timeout_s must be positive and at most {MAX_TIMEOUT_S:.0f}, but got {self.timeout_s}.")

    @property
    def target_engine(self) -> EngineSettings:
        """How the target is run; the draft is run as `engine` says."""
        return replace(self.engine, device=self.target_device or self.engine.device)
