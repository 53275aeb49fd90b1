"""`auto`: a method named without settings gets those that follow from a pair's costs and traces, and a label that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis.explore.inputs import LatencySource, latency_of, open_recording
from analysis.study.candidates import default_grid
from analysis.tuning.choosing import AUTO_TRIED, choose_lookup, choose_policies
from analysis.tuning.measured import Measured
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import POLICIES, PolicyError, label_of, parse_policies, parse_policy
from sim.latency.base import LatencyModel
from traces.importers.unseen import Unseen
from traces.schema import RequestTrace

MAX_AUTO_TOKENS = 8000  # of the traces: enough to tell settings apart, few enough for a moment
_FAMILIES = {"specbranch": ("specbranch", "specbranch without H-RAD")}  # of a method, where they are not its name
_FIXED = ("autoregressive", "probe")  # methods without settings to choose


def is_auto(label: str) -> bool:
    """Whether a label leaves its settings open: the name of a method alone.

    >>> [is_auto(label) for label in ("specbranch", "pearl:draft_length=4", "autoregressive")]
    [True, False, False]
    """
    return label.strip() in POLICIES and label.strip() not in _FIXED


def check_labels(labels: Sequence[str]) -> dict[str, str]:
    """Refuse what is no policy, or twice the same, before anything is read; gives the labels that are open -> their method."""
    parse_policies([label for label in labels if not is_auto(label)])
    names = [label.strip() for label in labels if is_auto(label)]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise PolicyError(f"policy {repeated[0]} is given twice; once is enough.")
    return {label: label.strip() for label in labels if is_auto(label)}


def resolve(
    labels: Sequence[str], traces: Sequence[RequestTrace] = (), latency: LatencyModel | None = None
) -> dict[str, Policy]:
    """Label -> policy, each `auto` resolved on traces and latencies; other labels say it all and need neither.

    Traces of several temperatures count as one text: a label names one policy. SpecBranch lets H-RAD decide where the traces
    hold its classes and it pays, and confidence alone (the paper's soft signal) where not. A method that the traces cannot
    answer for keeps its own defaults, and whoever runs it says what is missing. Raises PolicyError for no label and for two
    labels of one policy.
    """
    wanted = check_labels(labels)
    found: dict[str, Policy] = {}
    if wanted:
        assert latency is not None, "settings follow from latencies"
        found = _choose(list(dict.fromkeys(wanted.values())), _some(traces), latency)
    resolved: dict[str, Policy] = {}
    for label in labels:
        name = wanted.get(label, "")
        policy = found[name] if name in found else parse_policy(label)
        same = next((other for other, known in resolved.items() if known == policy), None)
        if same is not None:
            raise PolicyError(f"policy {label} is given twice, as {same}: both are {label_of(policy)}; once is enough.")
        resolved[label] = policy
    return resolved


def resolve_on_run(
    labels: Sequence[str],
    run_dir: Path | None,
    *,
    latency: LatencySource = None,
    temperatures: Sequence[float] = (),
    unseen: Unseen = Unseen.REJECTED,
    alignments: Sequence[str] = (),
) -> dict[str, Policy]:
    """`resolve` on a recorded run, on a foreign trace with latencies, or (None) on a law of
    `alignments` with latencies. The run is read only where something is open.

    temperatures: of the traces that count; all by default.
    """
    if not check_labels(labels):
        return resolve(labels)
    recording = open_recording(run_dir, temperatures=temperatures, unseen=unseen, alignments=alignments)
    traces = [trace for trace in recording.traces() if not temperatures or trace.temperature in temperatures]
    if not traces:
        raise PolicyError(f"{run_dir} holds no trace to choose settings on; record there, or give the settings.")
    return resolve(labels, traces, latency_of(recording, latency))


def default_policies(
    run_dir: Path | None,
    *,
    latency: LatencySource = None,
    temperatures: Sequence[float] = (),
    unseen: Unseen = Unseen.REJECTED,
    alignments: Sequence[str] = (),
) -> list[Policy]:
    """What is explored where nobody says what: of a run, or of a foreign trace with latencies, the default grid as far as the
    traces can answer for it, and every other method as `auto` sets it."""
    recording = open_recording(run_dir, temperatures=temperatures, unseen=unseen, alignments=alignments)
    traces = [trace for trace in recording.traces() if not temperatures or trace.temperature in temperatures]
    if not traces:
        return default_grid()
    model = latency_of(recording, latency)
    measured = Measured.of(traces, model)
    methods = [name for name in POLICIES if name not in (*_FIXED, "prompt_lookup")]
    chosen = _choose(methods, _some(traces), model)
    return list(dict.fromkeys([*filter(measured.answers, default_grid()), *chosen.values()]))


def resolution_lines(resolved: Mapping[str, Policy]) -> list[str]:
    """What each `auto` came to, as a label that says it all and can be given instead.

    >>> resolution_lines({"pearl": parse_policy("pearl:draft_length=5"), "probe": parse_policy("probe")})
    ['pearl (auto) is pearl:draft_length=5']
    """
    return [f"{label.strip()} (auto) is {label_of(policy)}" for label, policy in resolved.items() if is_auto(label)]


def _choose(methods: Sequence[str], traces: Sequence[RequestTrace], latency: LatencyModel) -> dict[str, Policy]:
    """Method -> its choice, for those that the traces can answer for."""
    found: dict[str, Policy] = {}
    if "prompt_lookup" in methods and all(trace.signals for trace in traces):
        found["prompt_lookup"] = choose_lookup(traces, latency)["prompt_lookup"].policy
    names = [family for method in methods for family in _FAMILIES.get(method, (method,))]
    chosen = choose_policies(traces, latency, max_tried=AUTO_TRIED, names=names)
    for method in methods:
        ways = [chosen[family] for family in _FAMILIES.get(method, (method,)) if family in chosen]
        if ways:
            found[method] = max(ways, key=lambda choice: choice.tokens_per_s).policy
    return found


def _some(traces: Sequence[RequestTrace]) -> list[RequestTrace]:
    """As many as hold MAX_AUTO_TOKENS, spread over all of them."""
    share = max(1.0, sum(trace.num_tokens for trace in traces) / MAX_AUTO_TOKENS)
    return [traces[int(index * share)] for index in range(max(1, int(len(traces) / share)))]
