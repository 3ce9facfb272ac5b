// From the selection to figures: rows of the page become points of charts and texts.

const page = JSON.parse(document.getElementById("results").textContent);
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const FIELDS = ["set", "mask", "direction", "heads", "dims", "dtype", "rest"];
const TEXTS = ["id", "mask", "heads", "dims", "dtype", "rest", "direction"];
const QUANTITIES = ["time", "tflops", "share", "memory"];
const ROW_HEIGHT = { noise: 24, compare: 34 };
const RATIOS = [0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 2]; // if all are near 1; else 1, 2, 5 of each decade
const DIRECTIONS = { fwd: "inference", fwd_bwd: "training" };
const PASSES = { whole: "forward + backward", fwd: "forward", bwd: "backward" };

const record = (fields, values) => Object.fromEntries(fields.map((name, n) => [name, values[n]]));
const cases = page.cases.map((values) => {
  const one = record(page.case_fields, values);
  for (const name of TEXTS) one[name] = page.words[one[name]];
  one.set = String(one.set);
  one.rows = [];
  return one;
});
for (const values of page.rows) cases[values[0]].rows.push(values);
const rowOf = (values) => {
  const row = record(page.row_fields, values);
  for (const name of ["backend", "status", "reason", "kernel", "notes"]) row[name] = page.words[row[name]];
  row.case = cases[row.case];
  return row;
};
const combinations = new Map();
for (const one of cases) {
  const key = JSON.stringify(FIELDS.map((name) => one[name]));
  if (!combinations.has(key)) combinations.set(key, { ...record(FIELDS, FIELDS.map((name) => one[name])), cases: [] });
  combinations.get(key).cases.push(one);
}
const offered = [...combinations.values()];

// The selection; `off` are the backends that are not shown.
const state = { pass: "whole", log: true, off: new Set() };
let chosen = offered[0];

function choose(wanted, first) {
  const score = (one) => FIELDS.reduce((sum, name) => sum + (one[name] === wanted[name] ? (name === first ? 100 : name === "set" ? 50 : 1) : 0), 0);
  let best = offered[0], most = -1;
  for (const one of offered) {
    const points = score(one) + one.cases.length / 1e6;
    if (points > most) [best, most] = [one, points];
  }
  chosen = best;
}

// Figures as texts.
const digits = (x) => x === 0 ? "0" : Math.abs(x) < 1e-3 || Math.abs(x) >= 1e5 ? x.toExponential(1) : String(Number(x.toPrecision(3)));
const ms = (x) => x == null ? "–" : x < 0.9995 ? `${digits(x * 1e3)} us` : x < 999.5 ? `${digits(x)} ms` : `${digits(x / 1e3)} s`;
const bytes = (x) => {
  if (x == null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (x >= 999.5 && place < 4) { x /= 1024; place += 1; }
  return `${digits(x)} ${units[place]}`;
};
const percent = (x) => x == null ? "–" : `${digits(100 * x)} %`;
const plain = (x) => x == null ? "–" : digits(x);

// Quantiles [least, 10 %, 25 %, median, 75 %, 90 %, largest] of the chosen pass of a row, or null.
function quantiles(row) {
  const { fwd, bwd } = row;
  const which = row.case.direction === "fwd" ? "fwd" : state.pass;
  if (which !== "whole") return row[which] && row[which][0];
  return fwd && bwd ? fwd[0].map((x, n) => x + bwd[0][n]) : null;
}
const passOf = (one) => one.direction === "fwd" ? "fwd" : state.pass;
const sumOf = (one, kind) => passOf(one) === "whole" ? one[`fwd_${kind}`] + one[`bwd_${kind}`] : one[`${passOf(one)}_${kind}`];

function figuresOf(row) {
  const q = quantiles(row);
  if (row.status !== "ok" || (!q && row.peak == null)) return null;
  const one = row.case, which = passOf(one), flops = sumOf(one, "flops");
  const least = sumOf(one, "bytes"), share = which === "whole" ? row.roof : row[`${which}_roof`];
  const samples = q ? (row[which] || row.fwd)[1] : 0;
  const figures = { row, length: one.length, q, samples, share, peak: row.peak, error: row.error };
  figures.tflops = q && flops ? flops / q[3] / 1e9 : null;
  figures.intensity = flops && least ? flops / least : null;
  figures.text = [
    `${row.backend}, ${one.length} tokens`,
    q ? `time ${ms(q[3])} (10 % ${ms(q[1])}, 90 % ${ms(q[5])}, least ${ms(q[0])}, largest ${ms(q[6])})` : "never timed",
    q && `${samples} samples, ${plain(figures.tflops)} TFLOP/s, ${percent(share)} of the roof`,
    `peak ${bytes(row.peak)}, minimum ${bytes(one.least_peak)}`,
    `error ${plain(row.error)} of its budget`,
    row.kernel && `ran ${row.kernel}`,
    row.notes,
  ].filter(Boolean).join("\n");
  return figures;
}

const theme = () => document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
const drawn = (backend) => {
  const look = page.looks[backend];
  return { backend, colour: look[theme()], shape: look.shape, dash: look.dash };
};

function pointsOf(name, figures) {
  const values = {
    time: (f) => f.q && [f.q[3], f.q[1], f.q[5]],
    tflops: (f) => f.tflops && [f.tflops, f.tflops * f.q[3] / f.q[5], f.tflops * f.q[3] / f.q[1]],
    share: (f) => f.q && f.share && [f.share, f.share * f.q[3] / f.q[5], f.share * f.q[3] / f.q[1]],
    memory: (f) => f.peak && [f.peak, f.peak, f.peak],
  }[name];
  // A little apart at each length, so that the bars do not cover one another.
  const order = [...new Set(figures.map((f) => f.row.backend))].sort();
  const lengths = [...new Set(figures.map((f) => f.length))].sort((x, y) => x - y);
  const nearest = Math.min(2, ...lengths.slice(1).map((length, n) => length / lengths[n]));
  const apart = (backend) => nearest ** (0.2 * ((order.indexOf(backend) + 0.5) / order.length - 0.5));
  return figures.flatMap((f) => {
    const point = values(f);
    return point ? [{ ...drawn(f.row.backend), place: f.length * apart(f.row.backend), value: point[0], low: point[1], high: point[2], text: f.text }] : [];
  });
}

// 1, 2 and 5 of each decade, within the values.
function decades(values) {
  const low = Math.min(...values), high = Math.max(...values), ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) ticks.push(...[1, 2, 5].map((step) => Number((step * 10 ** power).toPrecision(6))));
  return ticks.filter((tick) => tick >= low && tick <= high);
}

// The ticks of a value axis: 1, 2, 5 of each decade; of bytes, powers of two.
function ticksOf(name, points) {
  const low = Math.min(...points.map((p) => p.low)), high = Math.max(...points.map((p) => p.high)), ratio = high / low;
  if (!state.log) {
    const unit = name === "memory" ? 2 ** Math.ceil(Math.log2(high / 6)) : 10 ** Math.floor(Math.log10(high / 2));
    const step = name === "memory" ? unit : unit * [1, 2, 5].find((n) => high / (unit * n) <= 8);
    return Array.from({ length: Math.floor(high / step) + 1 }, (_, n) => n * step);
  }
  const base = name === "memory" ? (ratio > 64 ? 4 : 2) : 10;
  const steps = name === "memory" ? [1] : ratio > 300 ? [1] : ratio > 6 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7];
  const ticks = [], log = (x) => Math.log(x) / Math.log(base);
  for (let power = Math.floor(log(low)) - 1; power <= log(high) + 1; power += 1) ticks.push(...steps.map((step) => Number((step * base ** power).toPrecision(12))));
  return ticks.filter((tick) => tick > low / 1.6 && tick < high * 1.6);
}

function roofline(figures) {
  const points = figures.filter((f) => f.intensity && f.tflops).map((f) => ({ ...drawn(f.row.backend), intensity: f.intensity, rate: f.tflops * 1e12, text: f.text }));
  const roofs = page.roofs[Number(chosen.set)], lines = [];
  const matrix = (roofs.matmul_flops_per_s || {})[chosen.dtype], copy = roofs.copy_bytes_per_s;
  if (!points.length || !matrix || !copy) return { points, roofs: [] };
  const ridge = matrix / copy, intensities = points.map((p) => p.intensity);
  const from = Math.min(ridge, ...intensities) / 3, to = Math.max(ridge, ...intensities) * 3;
  const line = (label, dash, ends) => ends.forEach(([intensity, rate], n) => lines.push({ name: label, label: n === ends.length - 1 ? label : "", dash, intensity, rate }));
  line(`matrix products, ${chosen.dtype}: ${digits(matrix / 1e12)} TFLOP/s`, [1, 0], [[from, from * copy], [ridge, matrix], [to, matrix]]);
  const one = figures[0].row.case;
  if (roofs.exps_per_s && one.pairs) {
    const rate = roofs.exps_per_s * sumOf(one, "flops") / one.pairs;
    line("exponentials", [3, 3], [[Math.min(rate / copy, to), Math.min(rate, to * copy)], [to, rate]]);
  }
  return { points, roofs: lines };
}
