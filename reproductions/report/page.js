"use strict";

const element = (id) => document.getElementById(id);
const choice = { rule: element("rule"), filter: element("filter"), columns: element("columns") };
const views = new Map();
const dark = matchMedia("(prefers-color-scheme: dark)");

/* What the page holds compressed, by the id of its element. */
const unpacked = {};
function unpack(id) {
  unpacked[id] ??= (async () => {
    const bytes = Uint8Array.from(atob(element(id).textContent), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  })();
  return unpacked[id];
}

/* Tables: the filter and the rule hold for the whole page, the order for one table. */

function showColumns() {
  const names = new Set([...choice.columns.querySelectorAll(":checked")].map((box) => box.value));
  for (const cell of document.querySelectorAll("[data-column], [data-rule]")) {
    const { column, rule } = cell.dataset;
    cell.hidden = Boolean((column && !names.has(column)) || (rule && rule !== choice.rule.value));
  }
}

function showRows() {
  const part = choice.filter.value.trim().toLowerCase();
  for (const row of document.querySelectorAll("tbody tr")) {
    row.hidden = !row.dataset.found.toLowerCase().includes(part);
  }
}

/* Numbers as numbers; rows without one stay last. */
function compared(first, second, sign) {
  const [a, b] = [first, second].map((cell) => cell.dataset.value);
  if (a !== undefined && b !== undefined) return sign * (a - b);
  if (a !== undefined || b !== undefined) return a === undefined ? 1 : -1;
  return sign * first.textContent.localeCompare(second.textContent, "en", { numeric: true });
}

function sortBy(heading) {
  const sign = heading.ariaSort === "descending" || (!heading.ariaSort && !heading.matches(".number")) ? 1 : -1;
  for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
  heading.ariaSort = sign > 0 ? "ascending" : "descending";
  const body = heading.closest("table").tBodies[0];
  const index = heading.cellIndex;
  body.append(...[...body.rows].sort((a, b) => compared(a.cells[index], b.cells[index], sign)));
}

/* Charts: drawn when they come into sight, in the colours of the page. */

function themed(width) {
  const style = getComputedStyle(document.documentElement);
  const [text, line] = ["--text", "--line"].map((name) => style.getPropertyValue(name));
  return {
    background: "transparent",
    font: "system-ui, sans-serif",
    view: { stroke: line },
    title: { color: text },
    axis: { labelColor: text, titleColor: text, gridColor: line, domainColor: line, tickColor: line },
    legend: {
      labelColor: text, titleColor: text, orient: "bottom", columns: Math.max(1, Math.floor(width / 170)), labelLimit: 150,
      direction: "horizontal", symbolBaseFillColor: text, symbolBaseStrokeColor: text,
    },
  };
}

async function draw(place, specification) {
  views.get(place)?.finalize();
  /* Errors alone are told: a chart that the filter empties has no extent, and Vega warns of that. */
  const options = { config: themed(place.clientWidth), actions: false, renderer: "canvas", logLevel: 1 };
  const { view } = await vegaEmbed(place, specification, options);
  views.set(place, view);
  return view;
}

async function drawChart(place) {
  const { set } = place.closest("[data-set]").dataset;
  const view = await draw(place, (await unpack("charts"))[set][place.dataset.chart]);
  view.addEventListener("click", (event, item) => {
    if (item?.datum?.record && item.mark.marktype === "symbol") location.hash = item.datum.record;
  });
  tell(view);
}

function tell(view) {
  view.signal("rule", choice.rule.value).signal("filter", choice.filter.value.trim()).runAsync();
}

const charts = [...document.querySelectorAll("[data-chart]")];
const rasters = [...document.querySelectorAll("[data-raster]")];
const sight = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      sight.unobserve(target);
      if (target.dataset.chart) drawChart(target);
      else drawExample(target);
    }
  },
  { rootMargin: "300px" },
);
for (const place of [...charts, ...rasters]) sight.observe(place);

/* A record: the part of the address behind the #. */

function spikesOf(record) {
  const { times } = record.test.example;
  const names = times.map((_, index) => {
    if (index === 0) return "input";
    if (index === times.length - 1) return "output";
    return times.length > 3 ? `hidden ${index}` : "hidden";
  });
  /* The first layer at the bottom; a layer has a band of its own, whatever its size. */
  const spikes = times.flatMap((layer, index) =>
    layer.flatMap((time, neuron) =>
      time === null ? [] : [{ layer: names[index], neuron, time, place: index + (neuron + 0.5) / layer.length * 0.9 + 0.05 }],
    ),
  );
  const layers = names.map((name, index) => `${name} (${times[index].filter((time) => time !== null).length} of ${times[index].length})`);
  return { spikes, layers };
}

/* When the example is decided, if by a first spike, and how; as in figures.py. */
function decisionOf(record) {
  const { response_histogram: histogram, right_histogram: right, samples } = record.test;
  const label = `label ${record.test.example.label}`;
  if (right == null && histogram.at(-2) === samples) return { time: Infinity, told: `${label}, decided after all steps` };
  const fired = record.test.example.times.at(-1).map((time) => time ?? Infinity);
  const time = Math.min(...fired);
  const { per_class: several = 1 } = record.config.network;
  const named = (neuron) => (several > 1 ? `${neuron} (class ${Math.floor(neuron / several)})` : neuron);
  const first = fired.flatMap((each, index) => (each === time ? [named(index)] : []));
  const told = time === Infinity ? "no output spike" : `first spike of output ${first.join(" and ")} at ${+time.toPrecision(4)}`;
  return { time, told: `${label}, ${told}` };
}

function factsOf(record) {
  const { accuracy } = record.test;
  const percent = Object.entries(accuracy).map(([rule, value]) => `${rule.replace("_", " ")} ${+(100 * value).toFixed(4)} %`);
  return {
    "test accuracy": percent.join(", "),
    "spikes per image": record.test.total.map((count) => +count.toFixed(2)).join(" + "),
    "until the decision": record.test.until_decision.map((count) => +count.toFixed(2)).join(" + "),
    seed: record.seed,
    epochs: record.history.length,
    config: record.config_hash,
    commit: (record.commits?.length ? record.commits : [record.commit]).join(", "),
    versions: Object.entries(record.versions).map((pair) => pair.join(" ")).join(", "),
    machine: `${record.machine.processor}, ${record.machine.cores} cores, ${record.machine.threads} threads${record.machine.gpu ? `, ${record.machine.gpu}` : ""}`,
    "training time": `${record.wall_time_s} s`,
  };
}

async function showRecord() {
  const name = decodeURIComponent(location.hash.slice(1));
  const dialog = element("record");
  const text = name && !element(name) ? (await unpack("records"))[name] : undefined;
  if (text === undefined) return dialog.close();
  const record = JSON.parse(text);
  element("record-name").textContent = `${record.name}, seed ${record.seed}`;
  element("record-description").textContent = record.config.description ?? "";
  element("record-facts").replaceChildren(
    ...Object.entries(factsOf(record)).flatMap(([term, fact]) => [
      Object.assign(document.createElement("dt"), { textContent: term }),
      Object.assign(document.createElement("dd"), { textContent: fact }),
    ]),
  );
  element("record-config").textContent = JSON.stringify(record.config, null, 1);
  element("record-text").textContent = text;
  const file = element("record-file");
  URL.revokeObjectURL(file.href);
  file.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  file.download = `${record.name}-seed${record.seed}.json`;
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  return drawRaster(element("record-raster"), record);
}

async function drawExample(select) {
  const text = (await unpack("records"))[select.value];
  return drawRaster(select.closest("figure").querySelector(".chart"), JSON.parse(text));
}

/** Where the window ends; of records whose t_max is a bound only, the last spike. */
function windowOf({ test, config, t_max = config.network.t_max }) {
  if (test.window != null) return test.window;
  const parts = test.response_histogram.slice(0, -1);
  const begun = parts.reduce((sum, samples, part) => sum + part * samples, 0) / parts.length / test.samples;
  if (begun * t_max <= test.response_time * (1 + 1e-6)) return t_max;
  return Math.max(...test.example.times.flat().filter(Number.isFinite));
}

async function drawRaster(place, record) {
  const { spikes, layers } = spikesOf(record);
  const { time, told } = decisionOf(record);
  const { raster } = await unpack("charts");
  const known = { layers, told, window: windowOf(record) };
  const params = raster.params.map((param) => ({ ...param, value: known[param.name] ?? param.value }));
  const datasets = { spikes, decision: time === Infinity ? [] : [{ time }] };
  return draw(place, { ...raster, params, datasets });
}

/* What people do. */

choice.rule.addEventListener("change", () => {
  showColumns();
  for (const place of charts) if (views.has(place)) tell(views.get(place));
});
choice.filter.addEventListener("input", () => {
  showRows();
  for (const place of charts) if (views.has(place)) tell(views.get(place));
});
choice.columns.addEventListener("change", showColumns);
for (const select of rasters) select.addEventListener("change", () => drawExample(select));
element("choice").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("click", ({ target }) => {
  const heading = target.closest("th");
  if (heading) sortBy(heading);
  if (!choice.columns.contains(target)) choice.columns.open = false;
});
dark.addEventListener("change", () => {
  charts.filter((place) => views.has(place)).forEach(drawChart);
  rasters.forEach(drawExample);
});
element("record").addEventListener("close", () => history.replaceState(null, "", location.pathname));
addEventListener("hashchange", showRecord);
showColumns();
showRows();
showRecord();
