"use strict";
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const data = (element) => JSON.parse(element.textContent);
const root = document.documentElement;
const preferred = matchMedia("(prefers-color-scheme: dark)");
const dark = () => (root.style.colorScheme || (preferred.matches ? "dark" : "light")) === "dark";
const ink = () => getComputedStyle(document.body).color;
const shown = (color) => (color === "#000000" ? ink() : color); // black arms follow the text
const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
const press = (button) => all("button", button.parentElement).forEach((b) => b.setAttribute("aria-pressed", b === button));

for (const place of all(".chart")) {
  const { data: traces, layout } = data(place.nextElementSibling), arms = new Set(traces.map((t) => t.legendgroup)).size;
  traces.forEach((trace) => (trace.line.color = shown(trace.meta.color)));
  layout.font.color = ink();
  layout.height = Math.max(420, 90 + 21 * arms);
  if (place.clientWidth < 640) { // no room for a legend at the side
    layout.height = 330 + 20 * arms;
    Object.assign(layout.legend, { orientation: "h", y: -0.2 });
  }
  Plotly.newPlot(place, traces, layout, options);
}

for (const button of all("[data-chart]")) button.addEventListener("click", () => {
  const chart = document.getElementById(button.dataset.chart), traces = chart.data;
  if (button.dataset.scale) {
    Plotly.relayout(chart, structuredClone(chart.layout.meta[button.dataset.scale]));
    press(button);
  } else if (button.dataset.axis) {
    const axis = button.dataset.axis, places = traces.map((t) => t.meta.x[axis]);
    Plotly.update(chart, { x: places }, { "xaxis.title.text": axis, "xaxis.autorange": true });
    press(button);
  } else { // bands that are false stay off when the legend switches their arm
    const on = button.getAttribute("aria-pressed") === "false";
    const hidden = new Set(traces.filter((t) => !t.meta.band && t.visible === "legendonly").map((t) => t.legendgroup));
    const band = (arm) => (on ? (hidden.has(arm) ? "legendonly" : true) : false);
    Plotly.restyle(chart, { visible: traces.map((t) => (t.meta.band ? band(t.legendgroup) : t.visible ?? true)) });
    button.setAttribute("aria-pressed", on);
  }
});

for (const plane of all(".plane")) {
  const find = (selector) => plane.querySelector(selector), { arms, grids, traces, layout } = data(find("script"));
  const slider = find(".step"), play = find(".play");
  const cut = (line, count, style) => ({ ...style, x: line ? line.x.slice(0, count) : [], y: line ? line.y.slice(0, count) : [] });
  const draw = (panel) => {
    const arm = arms[panel.querySelector(".arm").value], task = arm.tasks[find(".task").value], grid = grids[task.grid];
    const color = shown(arm.color), step = +slider.value, [arrows, arcs, points, ends] = structuredClone(traces);
    arrows.line.color = arrows.marker.color = arcs.line.color = color;
    arrows.marker.size = task.arrows.x.map((_, k) => (k % 3 === 1 ? 11 : 0)); // a head at the end of every pair
    points.marker.color = ends.marker.color = ink();
    points.text = task.points.x.map((_, k) => `step ${k}`);
    const path = cut(task.points, step + 1, points);
    const outer = { x: [path.x[0], path.x.at(-1)], y: [path.y[0], path.y.at(-1)] };
    const frame = structuredClone(layout);
    frame.font.color = ink();
    frame.xaxis.range = [grid.x0, grid.x0 + task.width];
    frame.yaxis.range = [grid.y0, grid.y0 + task.height];
    Plotly.react(panel.querySelector(".map"), [grid, cut(task.arrows, 3 * step, arrows), cut(task.arcs, task.stride * step, arcs), path,
      { ...ends, ...outer }], frame, options);
  };
  plane.redraw = () => { find("output").value = `${slider.value} of ${slider.max}`; all(".panel", plane).forEach(draw); };
  all("select, .step", plane).forEach((control) => control.addEventListener("input", plane.redraw));
  let timer = 0;
  const stop = () => { clearInterval(timer); timer = 0; play.textContent = "play"; };
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = 0;
    play.textContent = "pause";
    timer = setInterval(() => { slider.stepUp(); plane.redraw(); if (slider.value === slider.max) stop(); }, 350);
  });
  plane.redraw();
}

for (const button of all("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0], down = head.getAttribute("aria-sort") === "ascending";
  const key = (row) => row.cells[head.cellIndex].dataset.key;
  const compare = (a, b) => (isNaN(a - b) && a !== b ? a.localeCompare(b) : a - b) || 0; // two infinities are equal
  all("th", head.parentElement).forEach((other) => other.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...[...body.rows].sort((a, b) => (key(a) === "") - (key(b) === "") || (down ? -1 : 1) * compare(key(a), key(b))));
});

const theme = document.getElementById("theme");
const paint = () => {
  theme.textContent = dark() ? "light" : "dark";
  for (const chart of all(".chart")) Plotly.update(chart, { "line.color": chart.data.map((t) => shown(t.meta.color)) }, { "font.color": ink() });
  all(".plane").forEach((plane) => plane.redraw());
};
theme.textContent = dark() ? "light" : "dark";
theme.addEventListener("click", () => { root.style.colorScheme = dark() ? "light" : "dark"; paint(); });
preferred.addEventListener("change", paint);
