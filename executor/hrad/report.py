"""An evaluated H-RAD predictor for people: a table on the terminal, a page in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from executor.hrad.ablation import LayerResult, LengthResult
from executor.hrad.evaluation import Evaluation, Quality
from executor.hrad.predictor import CLASS_NAMES, PredictorCard

COLUMNS = (
    "rule",
    "sees",
    "log-loss gain [95%]",
    "accuracy",
    "balanced",
    "calibration error",
    "AUC reject [95%]",
    "AUC accept [95%]",
)


def print_evaluation(console: Console, evaluation: Evaluation) -> None:
    """The rules side by side, and what a prediction costs."""
    title = f"Classes on {evaluation.num_positions} positions of {evaluation.num_prompts} prompts"
    table = Table(title=title, title_justify="left")
    for name in ("rule", "gain [95%]", "acc.", "AUC 0", "AUC 2", "ECE"):
        table.add_column(name, justify="left" if name == "rule" else "right", no_wrap=True)
    for rule in evaluation.rules:
        table.add_row(
            rule.name,
            f"{rule.gain:+.3f} {_interval(rule.gain_interval)}".replace("[", "\\["),
            f"{rule.accuracy:.3f}",
            f"{rule.auc_reject:.3f}",
            f"{rule.auc_accept:.3f}",
            f"{rule.calibration_error:.3f}",
        )
    console.print(table)
    console.print("gain: nats a position over the constant; AUC: of reject (0) and accept (2); ECE: calibration error")
    if evaluation.cost is not None:
        console.print(_cost_line(evaluation), highlight=False)


def print_ablation(console: Console, results: Sequence[LayerResult]) -> None:
    """One row a K."""
    table = Table(title="H-RAD by the number of the target's last blocks", title_justify="left", box=None)
    for name in ("K", "parameters", "features", "gain [95%]", "acc.", "AUC 0", "AUC 2"):
        table.add_column(name.replace("[", "\\["), justify="right", no_wrap=True)
    for result in results:
        quality = result.quality
        cells = (
            str(result.num_feature_layers),
            f"{result.num_parameters}",
            f"{result.feature_bytes} B",
            f"{quality.gain:+.3f} {_interval(quality.gain_interval)}",
            f"{quality.accuracy:.3f}",
            f"{quality.auc_reject:.3f}",
            f"{quality.auc_accept:.3f}",
        )
        table.add_row(*(cell.replace("[", "\\[") for cell in cells))
    console.print(table)


def print_lengths(console: Console, results: Sequence[LengthResult]) -> None:
    """One row a draft length, and whether H-RAD is worth asking."""
    table = Table(title="Gain over the constant by draft length, nats", title_justify="left", box=None)
    for name in ("length", "noisy margin", "H-RAD [95%]", "both", "H-RAD adds"):
        table.add_column(name.replace("[", "\\["), justify="right", no_wrap=True)
    for result in results:
        hrad = f"{result.hrad.gain:+.3f} {_interval(result.hrad.gain_interval)}".replace("[", "\\[")
        margin, both = (f"{one.gain:+.3f}" for one in (result.margin, result.both))
        table.add_row(str(result.draft_length), margin, hrad, both, f"{result.added:+.3f}")
    console.print(table)
    better = [str(result.draft_length) for result in results if result.hrad.gain > result.margin.gain]
    if better:
        console.print(f"H-RAD knows more than the noisy margin at draft length {', '.join(better)}")
    else:
        console.print("the noisy margin knows more than H-RAD at every draft length")


def as_markdown(evaluation: Evaluation, card: PredictorCard, command: str) -> str:
    """A page with everything in `evaluation`. command: what printed it."""
    hrad = next(rule for rule in evaluation.rules if rule.name == "H-RAD")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in zip(CLASS_NAMES, evaluation.class_shares, strict=True))
    sections = [
        "# H-RAD: how well acceptance is predicted",
        f"Written by `{command}`.",
        f"Predictor: a {card.num_inputs}-{card.widths[0]}-{card.widths[1]}-3 perceptron over the target's last "
        f"{card.num_feature_layers} blocks and the newest token's embedding, trained on {card.num_positions} positions "
        f"of {len(card.prompt_keys)} training prompts at temperatures {_listed(card.temperatures)}. A class says how "
        f"many of {card.draft_length} drafted tokens would be accepted: none (reject), all (accept), or some "
        "(confidence).",
        f"Judged on {evaluation.num_positions} positions of {evaluation.num_prompts} prompts that the predictor was not "
        f"trained on. Classes there: {shares}.",
        "## Beside the baselines",
        "Gain is the constant's log-loss minus the rule's, in nats a position; intervals resample prompts. "
        "What a rule sees limits its use: rules that see draft tokens can only cut a draft that was made already.",
        _table(COLUMNS, [_cells(rule) for rule in evaluation.rules]),
        "## H-RAD at each temperature",
        _table(
            ("temperature", *COLUMNS[2:]),
            [[f"{value:g}", *_cells(rule)[2:]] for value, rule in evaluation.by_temperature.items()],
        ),
        "## Confusion of H-RAD's likeliest class",
        _table(
            ("happened", *(f"said {name}" for name in CLASS_NAMES)),
            [[name, *map(str, row)] for name, row in zip(CLASS_NAMES, hrad.confusion, strict=True)],
        ),
        "## Reliability of H-RAD",
        "Positions in tenths by predicted chance.",
        _table(
            ("class", "predicted", "observed", "positions"),
            [
                [item.class_name, f"{item.mean_predicted:.3f}", f"{item.observed:.3f}", str(item.num)]
                for item in evaluation.reliability
            ],
        ),
    ]
    if evaluation.cost is not None:
        sections += ["## Cost", _cost_line(evaluation)]
    return "\n\n".join(sections) + "\n"


def _cells(rule: Quality) -> list[str]:
    return [
        rule.name,
        rule.sees,
        f"{rule.gain:+.3f} {_interval(rule.gain_interval)}",
        f"{rule.accuracy:.3f}",
        f"{rule.balanced_accuracy:.3f}",
        f"{rule.calibration_error:.3f}",
        f"{rule.auc_reject:.3f} {_interval(rule.auc_reject_interval)}",
        f"{rule.auc_accept:.3f} {_interval(rule.auc_accept_interval)}",
    ]


def _interval(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]"


def _cost_line(evaluation: Evaluation) -> str:
    assert evaluation.cost is not None
    return (
        f"A prediction takes {evaluation.cost.predict_s * 1e6:.0f} us after a verification of "
        f"{evaluation.cost.verify_s * 1e6:.0f} us: {evaluation.cost.share:.1%} of the two (medians on one core)."
        + ("" if evaluation.cost.is_clean else " Others used the cores meanwhile: these times support no claim.")
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
