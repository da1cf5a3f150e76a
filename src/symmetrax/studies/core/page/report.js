"use strict";
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const data = (element) => JSON.parse(element.textContent);
const root = document.documentElement;
const preferred = matchMedia("(prefers-color-scheme: dark)");
const dark = () => (root.style.colorScheme || (preferred.matches ? "dark" : "light")) === "dark";
const ink = () => getComputedStyle(document.body).color;
const shown = (color) => (color === "#000000" ? ink() : color); // black arms follow the text
const plain = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
const bare = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", modebar: { bgcolor: "rgba(0,0,0,0)", color: "#888", activecolor: "#888" } };
const press = (button) => all("button", button.parentElement).forEach((b) => b.setAttribute("aria-pressed", b === button));

for (const place of all(".chart")) {
  const figure = data(place.nextElementSibling), arms = new Set(figure.data.map((t) => t.legendgroup)).size;
  const narrow = place.clientWidth < 640;
  figure.data.forEach((t) => (t.line.color = shown(t.meta.color)));
  Plotly.newPlot(place, figure.data, { ...figure.layout, ...bare, font: { family: "inherit", size: 13, color: ink() }, hovermode: "closest",
    height: narrow ? 330 + 13 * arms : Math.max(420, 90 + 19 * arms), margin: { l: 10, r: 10, t: 10, b: 10 },
    legend: { tracegroupgap: 0, ...(narrow ? { orientation: "h", y: -0.2 } : {}) } }, plain);
}

for (const button of all("[data-chart]")) button.addEventListener("click", () => {
  const chart = document.getElementById(button.dataset.chart), traces = chart.data;
  if (button.dataset.scale) {
    Plotly.relayout(chart, { "yaxis.type": button.dataset.scale, "yaxis.range": [...chart.layout.meta.ranges[button.dataset.scale]] });
    press(button);
  } else if (button.dataset.axis) {
    Plotly.update(chart, { x: traces.map((t) => t.meta.x[button.dataset.axis]) }, { "xaxis.title.text": button.dataset.axis, "xaxis.autorange": true });
    press(button);
  } else { // bands that are false stay off when the legend switches their arm
    const on = button.getAttribute("aria-pressed") === "false";
    const hidden = new Set(traces.filter((t) => !t.meta.band && t.visible === "legendonly").map((t) => t.legendgroup));
    Plotly.restyle(chart, { visible: traces.map((t) => (!t.meta.band ? t.visible ?? true : !on ? false : hidden.has(t.legendgroup) ? "legendonly" : true)) });
    button.setAttribute("aria-pressed", on);
  }
});

for (const plane of all(".plane")) {
  const { arms, grids } = data(plane.querySelector("script")), slider = plane.querySelector(".step"), play = plane.querySelector(".play");
  const now = (panel) => { const arm = arms[panel.querySelector(".arm").value]; return { color: shown(arm.color), ...arm.tasks[plane.querySelector(".task").value] }; };
  const cut = (lines, count) => ({ x: lines ? lines.x.slice(0, count) : [], y: lines ? lines.y.slice(0, count) : [] });
  const parts = (task, step) => [cut(task.arrows, 3 * step), cut(task.arcs, task.stride * step), cut(task.points, step + 1)];
  const draw = (panel) => {
    const task = now(panel), [arrows, arcs, points] = parts(task, +slider.value), line = { color: task.color, width: 2 };
    const axis = { showgrid: false, zeroline: false, ticks: "outside", tickcolor: "#888", automargin: true, nticks: 5 }, grid = grids[task.grid];
    const ends = (low, step) => [low, low + step * 120];
    Plotly.react(panel.querySelector(".map"), [grid,
      { ...arrows, mode: "lines+markers", line, marker: { symbol: "arrow", angleref: "previous", size: task.arrows.x.map((_, k) => (k % 3 === 1 ? 11 : 0)), color: task.color, line: { width: 0 } }, hoverinfo: "skip" },
      { ...arcs, mode: "lines", line: { ...line, width: 1.6, dash: "4px,3px" }, hoverinfo: "skip" },
      { ...points, mode: "markers", marker: { size: 5, color: ink() }, text: points.x.map((_, k) => `step ${k}`), hovertemplate: "%{text}<br>(%{x:.4g}, %{y:.4g})<extra></extra>" },
      { x: [points.x[0], points.x.at(-1)], y: [points.y[0], points.y.at(-1)], mode: "markers", hoverinfo: "skip",
        marker: { size: [12, 13], symbol: ["circle-open", "star"], color: ink(), line: { width: [2, 0] } } },
    ], { ...bare, showlegend: false, hovermode: "closest", font: { family: "inherit", size: 12, color: ink() }, margin: { l: 10, r: 10, t: 10, b: 10 },
      xaxis: { ...axis, range: ends(grid.x0, grid.dx), constrain: "domain" }, yaxis: { ...axis, range: ends(grid.y0, grid.dy), scaleanchor: "x", constrain: "domain" } }, plain);
  };
  const redraw = () => { plane.querySelector("output").value = `${slider.value} of ${slider.max}`; all(".panel", plane).forEach(draw); };
  all("select, .step", plane).forEach((e) => e.addEventListener("input", redraw));
  let timer = 0;
  play.addEventListener("click", () => {
    clearInterval(timer);
    if (play.textContent === "pause") { play.textContent = "play"; return; }
    if (slider.value === slider.max) slider.value = 0;
    play.textContent = "pause";
    timer = setInterval(() => { slider.stepUp(); redraw(); if (slider.value === slider.max) { clearInterval(timer); play.textContent = "play"; } }, 350);
  });
  plane.redraw = redraw;
  redraw();
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
