"""What the answer depends on: prices at which another method wins, and acceptance at which it does."""

from __future__ import annotations

from analysis.explore.flips import Lever, Prices
from analysis.report.answers import Answers
from analysis.report.charts import GREY, Figure, colour, layout, line_at, method_name
from analysis.report.elements import Chart, Element, Section, Text, in_chart
from analysis.verdict import method_of, name_of


def sensitivity_section(answers: Answers) -> Section | None:
    """A chart for each price, at the first temperature whose answer has one, and every flip in a sentence."""
    elements: list[Element] = []
    several = len(answers.prices) > 1
    said: dict[str, list[str]] = {}  # a sentence may hold at several temperatures
    for temperature, prices in answers.prices.items():
        for sentence in _sentences(prices):
            said.setdefault(sentence, []).append(f"T = {temperature:g}")
    for sentence, places in said.items():
        where = f"At {' and '.join(places)}, " if several else ""
        elements.append(Text(text=f"{where}{sentence}" if where else sentence[0].upper() + sentence[1:]))
    for temperature, prices in list(answers.prices.items())[:1]:
        for lever in prices.levers:
            at = f", T = {temperature:g}" if several else ""
            elements.append(
                Chart(
                    name=f"price-{len(elements)}",
                    title=f"If {lever.name} cost more or less{at}",
                    figure=_curves(prices, lever),
                    height=330,
                    note="Simulated on the recorded outcomes, mean times; the dotted line is the price that was calibrated.",
                )
            )
    if not elements:
        return None
    lead = "The same rounds, timed again with one price moved at a time until another method wins."
    return Section(name="sensitivity", title="What would change the answer", lead=lead, elements=elements)


def _sentences(prices: Prices) -> list[str]:
    """Every flip, the nearest first; each begins with a small letter."""
    chosen, sentences = name_of(prices.policies[0]), []
    if method_of(prices.preferred) != method_of(prices.policies[0]):
        sentences.append(
            f"{chosen} is the fastest as measured, but on calibrated mean times the simulator puts "
            f"{_winner(prices.preferred)} before it: the choice between them is not settled."
        )
    for flip in sorted(prices.flips(), key=lambda flip: flip.distance):
        sentence = flip.sentence(name_of)
        sentences.append(sentence[0].lower() + sentence[1:])
    return sentences or [f"no price that was tried makes another method faster than {chosen}."]


def _winner(label: str) -> str:
    return "plain decoding" if label == "autoregressive" else name_of(label)


def _curves(prices: Prices, lever: Lever) -> Figure:
    """The best setting of each method at every price."""
    speedups = prices.speedups(lever)
    methods = list(dict.fromkeys(map(method_of, prices.policies)))
    data: list[Figure] = []
    for method in methods:
        rows = [row for row, label in enumerate(prices.policies) if method_of(label) == method]
        best = speedups[:, rows].argmax(axis=1)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "plain decoding" if method == "autoregressive" else method_name(method),
                "x": lever.points.tolist(),
                "y": speedups[:, rows].max(axis=1).tolist(),
                "text": [in_chart(name_of(prices.policies[rows[place]])) for place in best],
                "line": {"color": colour(method), "width": 1 if method == "autoregressive" else 2.5},
                "hovertemplate": "%{text}: %{y:.2f}<extra></extra>",
            }
        )
    is_log = lever.unit == "of a target forward"
    return {
        "data": data,
        "layout": layout(
            f"{lever.name} ({lever.unit})",
            "speed-up",
            x={"type": "log", "tickvals": _ticks(lever), "tickformat": ".2~g"} if is_log else {},
            shapes=[line_at(lever.value, axis="x") | {"line": {"color": GREY, "width": 1.5, "dash": "dot"}}],
            hovermode="x unified",
        ),
    }


def _ticks(lever: Lever) -> list[float]:
    marks = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
    return [mark for mark in marks if lever.points.min() <= mark <= lever.points.max()]
