"use strict";
(() => {
  const payloads = JSON.parse(document.getElementById("payloads").textContent);
  const config = { displaylogo: false, responsive: true, displayModeBar: false };
  const zoomable = { ...config, displayModeBar: true, modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d"]] };

  const draw = (place, figure) => {
    const isZoomable = figure.layout.dragmode !== false;
    Plotly.react(place, figure.data, figure.layout, isZoomable ? zoomable : config);
  };

  const drawChart = (place) => {
    const { figure, views } = payloads[place.dataset.chart];
    draw(place, views.length ? views[0][1] : figure);
    const picker = document.querySelector(`select[data-for="${place.dataset.chart}"]`);
    if (picker) picker.addEventListener("change", () => draw(place, views[picker.selectedIndex][1]));
  };

  // What if: speed-ups on a grid, between whose points they are taken to be straight.
  const whatIf = (place, data) => {
    const { axes, methods, speedups, here, margin } = data;
    const add = (parent, tag, properties = {}) => parent.appendChild(Object.assign(document.createElement(tag), properties));
    const answer = add(place, "p", { className: "answer" });
    answer.setAttribute("aria-live", "polite");
    const detail = add(place, "p", { className: "note" });
    const sliders = add(place, "div", { className: "sliders" });
    const bars = add(place, "div", { className: "chart" });
    bars.style.height = `${70 + 30 * methods.length}px`;
    const shown = add(place, "p", { className: "note", textContent: data.map_note });
    const map = add(place, "div", { className: "chart" });
    map.style.height = "340px";
    const state = {};

    const place_of = (axis, value) => {
      const points = axis.points;
      if (axis.is_step) return [[points.indexOf(value), 1]];
      let last = 1;
      while (last < points.length - 1 && points[last] < value) last += 1;
      const [low, high] = axis.is_log ? [Math.log(points[last - 1]), Math.log(points[last])] : [points[last - 1], points[last]];
      const share = Math.min(1, Math.max(0, ((axis.is_log ? Math.log(value) : value) - low) / (high - low)));
      return [[last - 1, 1 - share], [last, share]];
    };
    // speedups[method] is flat, the last axis changing fastest.
    const at = (method, spots) => {
      let cells = [[0, 1]];
      axes.forEach((axis, index) => {
        const next = [];
        for (const [cell, weight] of cells) for (const [spot, share] of spots[index]) if (share) next.push([cell * axis.points.length + spot, weight * share]);
        cells = next;
      });
      return cells.reduce((sum, [cell, weight]) => sum + weight * speedups[method][cell], 0);
    };
    // The best draft length up to the window, for each method.
    const window_axis = axes.findIndex((axis) => axis.name === "window");
    const best = (values) => {
      const spots = axes.map((axis) => place_of(axis, values[axis.name]));
      return methods.map((method, index) => {
        let found = { speedup: 1, length: 0 };
        axes[window_axis].points.forEach((length, spot) => {
          if (length > values.window) return;
          const own = spots.slice();
          own[window_axis] = [[spot, 1]];
          const speedup = at(index, own);
          if (speedup > found.speedup || !found.length) found = { speedup, length };
        });
        return { ...found, ...method };
      });
    };
    const winner = (rows) => {
      const first = rows.reduce((one, other) => (other.speedup > one.speedup ? other : one));
      return first.speedup > 1 + margin ? first : null;
    };
    const format = (axis, value) => (axis.is_share ? `${Math.round(100 * value)}%` : Number(value.toPrecision(3)).toString()) + axis.unit;

    const tokens = (length) => (length === 1 ? "1 token" : `${length} tokens`);
    const update = () => {
      const rows = best(state);
      const first = winner(rows);
      answer.textContent = first
        ? `${first.name} wins: ${first.speedup.toFixed(2)} times plain decoding, drafting ${tokens(first.length)} a round.`
        : "Plain decoding: no method gains here.";
      detail.textContent = rows.slice().sort((one, other) => other.speedup - one.speedup).map((row) => `${row.name} ${row.speedup.toFixed(2)}`).join(" · ");
      const sorted = rows.slice().sort((one, other) => one.speedup - other.speedup);
      Plotly.react(bars, [{
        type: "bar", orientation: "h", x: sorted.map((row) => row.speedup), y: sorted.map((row) => row.name),
        marker: { color: sorted.map((row) => row.colour) }, text: sorted.map((row) => `${row.speedup.toFixed(2)}, ${tokens(row.length)}`),
        textposition: "outside", cliponaxis: false, hoverinfo: "skip",
      }], { ...data.bars, xaxis: { ...data.bars.xaxis, range: [0, 1.7 * Math.max(1.2, ...rows.map((row) => row.speedup))] } }, config);
      drawMap();
    };
    const [x_axis, y_axis] = ["ratio", "acceptance"].map((name) => axes.find((axis) => axis.name === name));
    const fine = (axis, num) => Array.from({ length: num }, (_, index) => {
      const [low, high] = [axis.points[0], axis.points[axis.points.length - 1]];
      return axis.is_log ? low * (high / low) ** (index / (num - 1)) : low + ((high - low) * index) / (num - 1);
    });
    const xs = fine(x_axis, 36), ys = fine(y_axis, 30);
    const palette = [{ name: "plain decoding", colour: data.plain_colour }, ...methods];
    const scale = palette.flatMap(({ colour }, index) => [[index / palette.length, colour], [(index + 1) / palette.length, colour]]);
    const drawMap = () => {
      const hover = [], codes = ys.map((acceptance) => {
        const texts = [];
        const line = xs.map((ratio) => {
          const first = winner(best({ ...state, acceptance, ratio }));
          texts.push(first ? `${first.name} ${first.speedup.toFixed(2)}` : "plain decoding");
          return first ? 1 + methods.findIndex((method) => method.name === first.name) : 0;
        });
        hover.push(texts);
        return line;
      });
      const present = new Set(codes.flat());
      const traces = [{ type: "heatmap", x: xs, y: ys, z: codes, zmin: -0.5, zmax: palette.length - 0.5, colorscale: scale, showscale: false, text: hover, hovertemplate: "%{text}<extra></extra>" }];
      palette.forEach(({ name, colour }, index) => {
        if (present.has(index)) traces.push({ type: "scatter", mode: "markers", x: [null], y: [null], name, marker: { symbol: "square", size: 11, color: colour } });
      });
      traces.push({ type: "scatter", mode: "markers", x: [state.ratio], y: [state.acceptance], name: "the sliders", marker: { symbol: "circle-open", size: 15, color: "#ffffff", line: { width: 3 } }, showlegend: false, hoverinfo: "skip" });
      if (here) traces.push({ type: "scatter", mode: "markers", x: [here.ratio], y: [here.acceptance], name: "this pair", marker: { symbol: "star", size: 14, color: "#ffffff", line: { width: 1.5, color: "#000000" } }, hovertemplate: "this pair<extra></extra>", showlegend: false });
      Plotly.react(map, traces, data.map, config);
    };

    for (const axis of axes) {
      const label = add(sliders, "label", { textContent: axis.title });
      const output = add(label, "output");
      const input = add(label, "input", { type: "range", min: 0, max: axis.is_step ? axis.points.length - 1 : 100, step: 1 });
      const [low, high] = [axis.points[0], axis.points[axis.points.length - 1]];
      const value_of = () => {
        if (axis.is_step) return axis.points[input.valueAsNumber];
        const share = input.valueAsNumber / 100;
        return axis.is_log ? low * (high / low) ** share : low + (high - low) * share;
      };
      const start = Math.min(high, Math.max(low, axis.start));
      input.value = axis.is_step ? axis.points.indexOf(start) : Math.round(100 * (axis.is_log ? Math.log(start / low) / Math.log(high / low) : (start - low) / (high - low)));
      state[axis.name] = start;
      output.textContent = format(axis, start);
      let waiting = 0;
      input.addEventListener("input", () => {
        state[axis.name] = value_of();
        output.textContent = format(axis, state[axis.name]);
        cancelAnimationFrame(waiting);
        waiting = requestAnimationFrame(update);
      });
    }
    update();
    shown.hidden = !data.map_note;
  };

  // A chart is drawn when it comes near the window, so that the page opens at once; all of them before printing.
  const waiting = new Map();
  const drawNow = (place) => {
    const make = waiting.get(place);
    waiting.delete(place);
    if (make) make();
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { watcher.unobserve(entry.target); drawNow(entry.target); }
  }, { rootMargin: "600px 0px" });
  for (const place of document.querySelectorAll("[data-chart]")) waiting.set(place, () => drawChart(place));
  for (const place of document.querySelectorAll("[data-panel='what-if']")) waiting.set(place, () => whatIf(place, payloads[place.dataset.name]));
  [...waiting.keys()].forEach((place) => watcher.observe(place));

  // On paper everything is open, and charts have the paper's width.
  const PAPER_PX = 690;
  const charts = () => document.querySelectorAll(".js-plotly-plot");
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((details) => { details.open = true; });
    [...waiting.keys()].forEach(drawNow);
    charts().forEach((chart) => Plotly.relayout(chart, { width: chart.closest(".panel") ? PAPER_PX - 50 : PAPER_PX }));
  });
  window.addEventListener("afterprint", () => {
    opened.forEach((details) => { details.open = false; });
    charts().forEach((chart) => Plotly.relayout(chart, { width: null, autosize: true }));
  });
})();
