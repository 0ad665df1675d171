// The monitor: it reads /statistics and /metrics every few seconds and shows what has changed.

import { barChart, legend, table } from "./charts.js";
import { driftPane } from "./drift.js";
import { fixed, html, percent, read } from "./elements.js";
import { registryPane } from "./registry.js";

const EVERY_SECONDS = 5;
const MINUTES = 60;
// Shares of the label grid written below the histogram
const LABELS_BELOW = 5;

const element = (id) => document.getElementById(id);
const shown = new Map();
let paused = false;

async function refresh() {
  if (paused || document.hidden) return;
  try {
    const [statistics, metrics] = await Promise.all([read("statistics"), readMetrics()]);
    show(statistics, metrics);
    element("failed").hidden = true;
    element("updated").textContent = `Updated ${new Date().toLocaleTimeString("en-GB")}`;
  } catch (error) {
    // Set once: a screen reader would read it out again every few seconds
    if (element("failed").hidden) {
      const seen = element("updated").textContent;
      element("failed").textContent = `${error.message} ${seen ? "The numbers below are the last ones." : ""}`;
      element("failed").hidden = false;
    }
  }
}

/** Name and labels -> value, of Prometheus' text. */
async function readMetrics() {
  const answer = await fetch("metrics");
  const found = new Map();
  if (!answer.ok) return found;
  for (const line of (await answer.text()).split("\n")) {
    const [, name, value] = line.match(/^([^#\s]+(?:\{.*\})?) (\S+)$/) ?? [];
    if (name !== undefined) found.set(name, Number(value));
  }
  return found;
}

/** Draws a part again where what it shows has changed, or the room for it. */
function draw(id, contents, make) {
  const place = element(id);
  const width = Math.min(Math.max(place.clientWidth, 260), 640);
  const key = JSON.stringify([contents, width]);
  if (shown.get(id) === key) return;
  shown.set(id, key);
  place.replaceChildren(...make(contents, width));
}

function show(statistics, metrics) {
  const { model, server, latency_seconds: latency, quantity, unit } = statistics;
  const version = model.version === null ? "" : `, version ${model.version}`;
  element("served").textContent = `${model.name}${version}, ${since(server.started)}`;

  const memory = metrics.get("process_resident_memory_bytes");
  draw("tiles", { server: { ...server, uptime_seconds: 0 }, latency, memory: round(memory) }, tiles);
  draw("minutes", perMinute(statistics.minutes), minutes);
  draw("seconds", times(metrics), seconds);
  draw("values", { ...statistics.values, quantity, unit }, values);
  draw("drift", { drift: statistics.drift, known: statistics.values.training !== null, unit }, driftPane);
  draw("registry", { registry: statistics.registry, model, unit }, registryPane);
  draw("refusals", server.refusals, refusals);
  element("refusals-pane").hidden = Object.keys(server.refusals).length === 0;
}

function since(started) {
  const time = new Date(started);
  return `since ${time.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" })}`;
}

/** Megabytes, so that the tile does not change all the time. */
function round(bytes) {
  return bytes === undefined ? null : Math.round(bytes / 1e6);
}

function tiles({ server, latency, memory }) {
  const counts = Object.entries(server.requests);
  const total = counts.reduce((sum, [, count]) => sum + count, 0);
  const wrong = counts.reduce((sum, [status, count]) => sum + (status >= "400" ? count : 0), 0);
  return [
    tile("Requests", fixed(total), total ? `${percent(wrong / total)} refused or failed` : "none yet"),
    tile("Response time", milliseconds(latency.p50), latency.answers
      ? `median; 90 % within ${milliseconds(latency.p90)}, 99 % within ${milliseconds(latency.p99)}`
      : "none yet"),
    tile("Photos without a face", percent(server.no_face_rate),
      server.photos ? `${fixed(server.photos_without_face)} of ${fixed(server.photos)} photos` : "no photo yet"),
    tile("Faces", fixed(server.faces), `in ${fixed(server.photos)} photos`),
    tile("Running now", `${fixed(server.inside)}`, `${fixed(server.at_once)} at once, the others wait` +
      (memory === null ? "" : `; ${fixed(memory)} MB of memory`)),
  ];
}

function tile(name, value, text) {
  return html(
    "div",
    { className: "tile" },
    html("p", { className: "tile-name" }, name),
    html("p", { className: "tile-value" }, value),
    html("p", { className: "small" }, text),
  );
}

function milliseconds(time) {
  if (time === null) return "–";
  return time < 1 ? `${fixed(1000 * time)} ms` : `${fixed(time, Number.isInteger(time) ? 0 : 1)} s`;
}

/** The last hour, minutes without a request included. */
function perMinute(rows) {
  const counts = new Map(rows.map((row) => [Date.parse(row.minute) / 60000, row]));
  const now = Math.floor(Date.now() / 60000);
  return Array.from({ length: MINUTES }, (_, index) => {
    const minute = now - MINUTES + 1 + index;
    const row = counts.get(minute);
    return { minute, requests: row?.requests ?? 0, errors: row?.errors ?? 0 };
  });
}

function minutes(rows, width) {
  const total = rows.reduce((sum, row) => sum + row.requests, 0);
  if (total === 0) return [empty("No request in the last hour.")];
  const clock = (minute) =>
    new Date(60000 * minute).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  const bars = rows.map((row) => ({
    label: clock(row.minute),
    value: row.requests,
    part: row.errors,
    title: `${clock(row.minute)}: ${row.requests} requests, ${row.errors} refused or failed`,
  }));
  const most = Math.max(...rows.map((row) => row.requests));
  return [
    barChart({
      bars,
      width,
      format: (value) => fixed(value),
      every: 15,
      edges: "now",
      label: `${total} requests in the last hour, at most ${most} in a minute.`,
    }),
    legend({ className: "bar-value", text: "answered" }, { className: "bar-part", text: "refused or failed" }),
  ];
}

/** The buckets of the responses' seconds as counts of their own. */
function times(metrics) {
  const rows = [];
  let below = 0;
  for (const [name, count] of metrics) {
    const bound = name.match(/^visage_request_seconds_bucket\{le="([^"]+)"\}$/)?.[1];
    if (bound === undefined) continue;
    rows.push({ bound: bound === "+Inf" ? null : Number(bound), count: count - below });
    below = count;
  }
  return rows;
}

function seconds(rows, width) {
  const total = rows.reduce((sum, row) => sum + row.count, 0);
  if (total === 0) return [empty("No response yet.")];
  const bars = rows.map((row, index) => {
    const before = rows[index - 1]?.bound ?? 0;
    const name = row.bound === null ? `over ${before} s` : `${milliseconds(row.bound)}`;
    const range = row.bound === null ? name : `${milliseconds(before)} to ${name}`;
    return { label: name, value: row.count, title: `${range}: ${fixed(row.count)} responses` };
  });
  const fullest = bars.reduce((best, bar) => (bar.value > best.value ? bar : best));
  return [
    barChart({
      bars,
      width,
      format: (value) => fixed(value),
      every: width < 420 ? 4 : 2,
      label: `${fixed(total)} responses by time; most took ${fullest.title}.`,
    }),
    html("p", { className: "legend small" }, "each bar: responses up to this time, since the start"),
  ];
}

function values({ edges, served, training, num_served: count, quantity, unit }, width) {
  if (served === null && training === null) {
    return [empty("No face was served yet, and this model brings no summary of its training faces.")];
  }
  const bars = (served ?? training).map((_, index) => {
    const range = `${fixed(edges[index])} to ${fixed(edges[index + 1])} ${unit}`;
    const shares = [served === null ? null : `${percent(served[index])} served`];
    if (training !== null) shares.push(`${percent(training[index])} in training`);
    return {
      label: fixed(edges[index]),
      value: served === null ? 0 : served[index],
      line: training === null ? undefined : training[index],
      title: `${range}: ${shares.filter(Boolean).join(", ")}`,
    };
  });
  const parts = [
    barChart({
      bars,
      width,
      format: (value) => percent(value, 0),
      every: bars.length / LABELS_BELOW,
      edges: fixed(edges[edges.length - 1]),
      label: `Histogram of predicted ${quantity}, ${fixed(count)} served faces${training === null ? "" : " and the training faces"}.`,
    }),
  ];
  const keys = [{ className: "bar-value", text: `${fixed(count)} served faces` }];
  if (training !== null) keys.push({ className: "bar-line", text: "training faces" });
  parts.push(legend(...keys));
  if (served === null) parts.push(html("p", { className: "small" }, "No face was served yet."));
  if (training === null) {
    parts.push(html("p", { className: "small" }, "This model brings no summary of its training faces."));
  }
  parts.push(asTable(bars, edges, served, training, unit));
  return parts;
}

function asTable(bars, edges, served, training, unit) {
  const heads = [unit, "served", ...(training === null ? [] : ["training"])];
  const rows = bars.map((_, index) => [
    `${fixed(edges[index])} to ${fixed(edges[index + 1])}`,
    percent(served?.[index]),
    ...(training === null ? [] : [percent(training[index])]),
  ]);
  const open = element("values").querySelector("details")?.open ?? false;
  return html(
    "details",
    { open },
    html("summary", {}, "As a table"),
    table(heads, rows, "Served values against training"),
  );
}

function refusals(counts) {
  const rows = Object.entries(counts)
    .sort((a, b) => b[1] - a[1])
    .map(([kind, count]) => [kind.replaceAll("_", " "), fixed(count)]);
  return [table(["kind", "requests"], rows, "Refused requests")];
}

function empty(text) {
  return html("p", { className: "empty" }, text);
}

function listen() {
  element("pause").addEventListener("click", () => {
    paused = !paused;
    element("pause").setAttribute("aria-pressed", String(paused));
    element("pause").textContent = paused ? "Go on" : "Pause";
    refresh();
  });
  document.addEventListener("visibilitychange", refresh);
  window.addEventListener("resize", refresh);
  setInterval(refresh, 1000 * EVERY_SECONDS);
}

listen();
refresh();
