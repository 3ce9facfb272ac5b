// What stands beside the charts: the form, the table of figures, the samples of one figure.

const CELLS = { "": plain, ms, bytes, times: (x) => x == null ? "–" : `${digits(x)}x`, share: percent };
const COLUMNS = [
  ["backend", (f) => f.row.backend], ["tokens", (f) => String(f.length)], ["time, median", (f) => ms(f.q && f.q[3])],
  ["10 %", (f) => ms(f.q && f.q[1])], ["90 %", (f) => ms(f.q && f.q[5])], ["least", (f) => ms(f.q && f.q[0])], ["samples", (f) => String(f.samples)],
  ["TFLOP/s", (f) => plain(f.tflops)], ["of the roof", (f) => percent(f.share)], ["FLOP/byte", (f) => plain(f.intensity)], ["peak", (f) => bytes(f.peak)],
  ["over minimum", (f) => f.peak && f.row.case.least_peak ? `${digits(f.peak / f.row.case.least_peak)}x` : "–"], ["error/budget", (f) => plain(f.error)],
  ...page.columns.map(([title, field, unit]) => [title, (f) => CELLS[unit](f.row[field])]),
];
function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
function swatch(backend) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  made.setAttribute("class", `swatch b${page.looks[backend].place}`);
  made.setAttribute("viewBox", "-1.2 -1.2 2.4 2.4");
  made.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", page.looks[backend].shape);
  made.append(path);
  return made;
}
function drawTable(figures) {
  $("#figures thead").replaceChildren(element("tr", ""));
  $("#figures thead tr").append(...COLUMNS.map(([name], n) => element("th", name, { scope: "col", class: n ? "n" : "" })));
  const order = [...figures].sort((a, b) => a.length - b.length || (a.q ? a.q[3] : Infinity) - (b.q ? b.q[3] : Infinity));
  $("#figures tbody").replaceChildren(...order.map((f) => {
    const line = element("tr", "");
    line.append(...COLUMNS.map(([, text], n) => element(n ? "td" : "th", text(f), n ? { class: "n" } : { scope: "row" })));
    line.firstChild.prepend(swatch(f.row.backend), " ");
    if (!f.samples) return line;
    const button = element("button", String(f.samples), { type: "button", "aria-label": `${f.samples} samples of ${f.row.backend} at ${f.length} tokens` });
    button.addEventListener("click", () => drawSamples(f));
    line.children[COLUMNS.findIndex(([name]) => name === "samples")].replaceChildren(button);
    return line;
  }));
}

function drawSamples(f) {
  const points = [], lines = [];
  for (const which of ["fwd", "bwd"]) {
    for (const [n, round] of ((f.row[which] || [])[2] || []).entries()) {
      lines.push([PASSES[which], String(n + 1), round.map(digits).join(", ")]);
      for (const value of round) points.push({ ...drawn(f.row.backend), shape: which === "fwd" ? "circle" : "cross", round: n + 1, value, text: `${PASSES[which]}, round ${n + 1}: ${ms(value)}` });
    }
  }
  $("#raw").hidden = false;
  $("#raw-summary").textContent = `${f.text.replaceAll("\n", "; ")}. ${points.length ? "Circles: forward; crosses: backward." : "The page of a set this large has quantiles only; the samples are in its results.jsonl."}`;
  ask($("#chart-samples"), "samples", { points });
  $("#rounds tbody").replaceChildren(...lines.map((texts) => {
    const line = element("tr", "");
    line.append(...texts.map((text, n) => element("td", text, { class: n === 1 ? "n" : "" })));
    return line;
  }));
  $("#raw").focus();
}

function fill(select, values, current, text = (value) => value) {
  select.replaceChildren(...values.map((value) => element("option", text(value), { value })));
  select.value = current;
  select.closest("label").hidden = values.length < 2;
}
function drawControls(rows) {
  const inSet = offered.filter((one) => one.set === chosen.set);
  for (const name of FIELDS.slice(1)) {
    const values = [...new Set(inSet.map((one) => one[name]))];
    fill($(`[data-field=${name}]`), values, chosen[name], name === "direction" ? (value) => DIRECTIONS[value] || value : undefined);
  }
  fill($("[data-field=pass]"), chosen.direction === "fwd" ? ["fwd"] : Object.keys(PASSES), passOf(chosen), (value) => PASSES[value]);
  if ($("#set")) $("#set").value = chosen.set;
  $("[data-field=log]").checked = state.log;
  const backends = [...new Set(rows.filter((row) => row.status === "ok").map((row) => row.backend))].sort();
  $("#backends").replaceChildren(...backends.map((backend) => {
    const label = element("label", "", { class: "backend" });
    const box = element("input", "", { type: "checkbox", value: backend });
    box.checked = !state.off.has(backend);
    label.append(box, swatch(backend), element("bdi", backend));
    return label;
  }));
}

function drawAll() {
  const rows = chosen.cases.flatMap((one) => one.rows).map(rowOf);
  const shown = rows.filter((row) => !state.off.has(row.backend));
  const seen = new Set();
  const figures = shown.map(figuresOf).filter((f) => {
    const key = f && JSON.stringify([f.row.backend, f.row.case.id]);
    return f && !seen.has(key) && seen.add(key);
  });
  drawControls(rows);
  const lengths = [...new Set(chosen.cases.map((one) => one.length))].sort((a, b) => a - b);
  for (const name of QUANTITIES) {
    const points = pointsOf(name, figures);
    ask($(`#chart-${name}`), name, { points }, { across: lengths, up: ticksOf(name, points) });
  }
  const roofs = roofline(figures), drawnPoints = [...roofs.points, ...roofs.roofs];
  ask($("#chart-roofline"), "roofline", roofs, { across: decades(drawnPoints.map((p) => p.intensity)), up: decades(drawnPoints.map((p) => p.rate)) });
  drawTable(figures);
  $("#raw").hidden = true;
  const absent = new Map();
  for (const row of rows) if (row.status !== "ok" && row.status !== "unavailable") absent.set(row.backend, `${row.status}${row.reason ? `: ${row.reason}` : ""}`);
  for (const row of rows) if (row.status === "ok" && !quantiles(row)) absent.set(row.backend, `right, not timed${row.notes ? `: ${row.notes}` : ""}`);
  $("#absent").replaceChildren(...(absent.size ? [element("strong", "Not in these charts: "), [...absent].map(([name, why]) => `${name} (${why})`).join("; ")] : []));
  $("#summary").textContent = `${chosen.mask}, ${DIRECTIONS[chosen.direction] || chosen.direction}, ${chosen.heads}, ${chosen.dims}, ${chosen.dtype}, ${chosen.rest}: ${figures.length} figures at ${lengths.length} lengths.`;
  for (const one of $$("[data-set]")) one.hidden = one.dataset.set !== chosen.set;
  drawFixed();
  document.documentElement.dataset.drawing = String(drawing.size);
}
