"use strict";
// Curves, events, settings and log; then everything begins.

const COLORS = ["#7fb3e6", "#e3b15f", "#7fb78f", "#d58fb5", "#b3a2e8", "#e07a6b"];
const EVENT_COLORS = { rollback: "#e3b15f", stop: "#e07a6b" };
const EPOCHS = [1, 2, 5, 10, 20, 50, 100, 200, 500]; // between labels
const plots = [];
let marked = null; // the epoch that the slices show

function markEpoch(epoch) {
  if (epoch === marked) return;
  marked = epoch;
  for (const plot of plots) plot.redraw(false);
}

// Vertical lines: events, and the epoch that the slices show.
function drawMarks(plot) {
  const { ctx, bbox } = plot;
  const line = (epoch, color, dash) => {
    const x = Math.floor(plot.valToPos(epoch, "x", true)) + 0.5; // a sharp line
    if (!(x >= bbox.left && x <= bbox.left + bbox.width)) return;
    ctx.strokeStyle = color;
    ctx.setLineDash(dash);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  };
  ctx.save();
  ctx.lineWidth = devicePixelRatio;
  for (const run of PAGE.runs) {
    for (const event of run.events) {
      if (EVENT_COLORS[event.kind]) line(event.epoch, EVENT_COLORS[event.kind], [4, 3]);
    }
  }
  if (Number.isFinite(marked)) line(marked, "#5a626d", []);
  ctx.restore();
}

// The lines of a panel; `kind` is curves (by epoch) or steps (single ones).
function seriesOf(kind, keys) {
  const several = PAGE.runs.length > 1;
  return PAGE.runs.flatMap((run, number) =>
    keys
      .filter((key) => run[kind].series[key])
      .map((key) => ({
        label: several ? `${run.name}: ${key}${keys.indexOf(key) ? " (dashed)" : ""}` : key,
        values: new Map(run[kind].epochs.map((epoch, i) => [epoch, run[kind].series[key][i]])),
        stroke: COLORS[(several ? number : keys.indexOf(key)) % COLORS.length],
        dash: several && keys.indexOf(key) > 0 ? [6, 4] : undefined,
      })),
  );
}

// Labels of an axis with as many decimals as tell them apart.
function labels(_, ticks) {
  const step = Math.abs(ticks[1] - ticks[0]) || 1;
  const decimals = clamp(Math.ceil(-Math.log10(step)) + 1, 0, 10);
  return ticks.map((value) => Number(value.toFixed(decimals)).toString());
}

function plotPanel(kind, [title, keys], epochs) {
  const axis = { stroke: "#8b939d", grid: { stroke: "#232830" }, ticks: { stroke: "#232830" } };
  const digits = (value) => (value == null ? "–" : Number(value.toPrecision(5)).toString());
  const series = seriesOf(kind, keys);
  const box = element("div", "", "plot");
  $("plots").append(box);
  const values = series.flatMap((s) => [...s.values.values()]).filter((v) => v != null);
  const log = title === "learning rate" && values.every((v) => v > 0);
  const powers = (_, ticks) => ticks.map((v) => (v == null ? "" : v.toExponential(0)));
  const ofY = log ? { values: powers, grid: { show: false }, ticks: { show: false } } : { values: labels };
  const options = {
    title,
    width: box.clientWidth - 14,
    height: 210,
    cursor: { sync: { key: "epochs" } },
    scales: { x: { time: false }, y: { distr: log ? 3 : 1 } },
    axes: [{ ...axis, incrs: kind === "steps" ? [0.1, 0.2, 0.5, ...EPOCHS] : EPOCHS }, { ...axis, size: 62, ...ofY }],
    series: [
      { label: "epoch", value: (_, v) => v ?? "–" },
      ...series.map(({ label, stroke, dash }) => ({
        label, stroke, dash, width: 1.5, spanGaps: true, value: (_, v) => digits(v),
        points: { show: epochs.length < 40, size: 5, fill: stroke },
      })),
    ],
    hooks: { draw: [drawMarks] },
  };
  const data = [epochs, ...series.map((s) => epochs.map((epoch) => s.values.get(epoch) ?? null))];
  plots.push(new uPlot(options, data, box));
}

function plotAll() {
  for (const kind of ["curves", "steps"]) {
    const epochs = [...new Set(PAGE.runs.flatMap((run) => run[kind].epochs))].sort((a, b) => a - b);
    for (const panel of PAGE.panels[kind]) plotPanel(kind, panel, epochs);
  }
  if (!plots.length) $("plots").append(element("p", "No metrics yet.", "empty"));
}

function table(head, rows) {
  const made = element("table");
  const top = made.createTHead().insertRow();
  for (const name of head) top.append(element("th", name));
  const body = made.createTBody();
  for (const cells of rows) {
    const row = body.insertRow();
    cells.forEach(([text, className], i) => row.append(element(i ? "td" : "th", text, className)));
  }
  const wide = element("div", "", "wide");
  wide.append(made);
  return wide;
}

function listEvents() {
  const several = PAGE.runs.length > 1;
  const rows = PAGE.runs.flatMap((run) =>
    run.events.map((e) => [
      ...(several ? [[run.name]] : []),
      [e.when], [e.kind, e.kind], [Number.isInteger(e.epoch) ? `after ${e.epoch}` : `in ${Math.ceil(e.epoch)}`],
      [e.text],
    ]),
  );
  const head = [...(several ? ["run"] : []), "time", "what", "epoch", "message"];
  const none = element("p", "No rollback, stop or warning.", "empty");
  document.querySelector("#events div").append(rows.length ? table(head, rows) : none);
}

function listSettings() {
  const section = $("settings");
  const keys = [...new Set([...Object.keys(PAGE.defaults), ...PAGE.runs.flatMap((r) => Object.keys(r.settings))])];
  const rowOf = (key) => {
    const usual = PAGE.defaults[key] ?? "–";
    const values = PAGE.runs.map((run) => run.settings[key]); // undefined: the run is older
    const changed = values.some((value) => value !== undefined && value !== usual);
    const cells = values.map((value) => [value ?? "–", [usual, undefined].includes(value) ? "default" : "differs"]);
    return { changed, row: [[key], ...cells, [usual, "default"]] };
  };
  const rows = keys.map(rowOf);
  const head = ["setting", ...PAGE.runs.map((run) => run.name), "default"];
  section.append(table(head, rows.filter((r) => r.changed).map((r) => r.row)));
  const rest = element("details");
  rest.append(element("summary", "Settings as by default"));
  rest.append(table(head, rows.filter((r) => !r.changed).map((r) => r.row)));
  section.append(rest);
}

function begin() {
  $("state").textContent =
    PAGE.runs.map((run) => (PAGE.runs.length > 1 ? `${run.name}: ${run.state}` : run.state)).join("; ") +
    `, as of ${PAGE.written}`;
  plotAll();
  listEvents();
  listSettings();
  for (const run of PAGE.runs) {
    if (PAGE.runs.length > 1) $("log").append(element("h2", run.name));
    const lines = element("pre", run.log.join("\n"));
    lines.tabIndex = 0;
    $("log").append(lines);
    lines.scrollTop = lines.scrollHeight;
  }
  if (!SLICES.length) {
    stage.append(element("p", "No slices are kept: a run keeps them from its first validation on.", "empty"));
    $("controls").hidden = true;
    return;
  }
  restore();
  connect();
  update();
  new ResizeObserver(() => {
    draw();
    for (const plot of plots) plot.setSize({ width: plot.root.parentNode.clientWidth - 14, height: 210 });
  }).observe(document.querySelector("main"));
}

begin();
