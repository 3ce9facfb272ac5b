// Glue only: the form, the address and the tables; the charts are Vega-Lite's.
"use strict";
(() => {
  const page = JSON.parse(document.getElementById("results").textContent);
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const FIELDS = ["set", "mask", "direction", "heads", "dims", "dtype", "rest"];
  const TEXTS = ["id", "mask", "heads", "dims", "dtype", "rest", "direction"];
  const QUANTITIES = ["time", "tflops", "share", "memory"];
  const ROW_HEIGHT = { noise: 24, compare: 34 };
  const RATIOS = [0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 2]; // where all lie near 1; else 1, 2, 5 of each decade
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

  // What is selected; `off` are the backends that are not shown.
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

  // Figures as words.
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
    const found = { row, length: one.length, q, samples, share, peak: row.peak, error: row.error };
    found.tflops = q && flops ? flops / q[3] / 1e9 : null;
    found.intensity = flops && least ? flops / least : null;
    found.said = [
      `${row.backend}, ${one.length} tokens`,
      q ? `time ${ms(q[3])} (10 % ${ms(q[1])}, 90 % ${ms(q[5])}, least ${ms(q[0])}, largest ${ms(q[6])})` : "never timed",
      q && `${samples} samples, ${plain(found.tflops)} TFLOP/s, ${percent(share)} of the roof`,
      `memory ${bytes(row.peak)}, least possible ${bytes(one.least_peak)}`,
      `error ${plain(row.error)} of its budget`,
      row.kernel && `ran ${row.kernel}`,
      row.notes,
    ].filter(Boolean).join("\n");
    return found;
  }

  const theme = () => document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const drawn = (backend) => {
    const look = page.looks[backend];
    return { backend, colour: look[theme()], shape: look.shape, dash: look.dash };
  };

  function pointsOf(name, found) {
    const values = {
      time: (f) => f.q && [f.q[3], f.q[1], f.q[5]],
      tflops: (f) => f.tflops && [f.tflops, f.tflops * f.q[3] / f.q[5], f.tflops * f.q[3] / f.q[1]],
      share: (f) => f.q && f.share && [f.share, f.share * f.q[3] / f.q[5], f.share * f.q[3] / f.q[1]],
      memory: (f) => f.peak && [f.peak, f.peak, f.peak],
    }[name];
    // A little apart at each length, so that the bars do not cover one another.
    const order = [...new Set(found.map((f) => f.row.backend))].sort();
    const lengths = [...new Set(found.map((f) => f.length))].sort((x, y) => x - y);
    const nearest = Math.min(2, ...lengths.slice(1).map((length, n) => length / lengths[n]));
    const apart = (backend) => nearest ** (0.2 * ((order.indexOf(backend) + 0.5) / order.length - 0.5));
    return found.flatMap((f) => {
      const given = values(f);
      return given ? [{ ...drawn(f.row.backend), place: f.length * apart(f.row.backend), value: given[0], low: given[1], high: given[2], said: f.said }] : [];
    });
  }

  // 1, 2 and 5 of each decade that values lie in.
  function decades(values) {
    const low = Math.min(...values), high = Math.max(...values), found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) found.push(...[1, 2, 5].map((step) => Number((step * 10 ** power).toPrecision(6))));
    return found.filter((tick) => tick >= low && tick <= high);
  }

  // Where a value axis is labelled: at 1, 2, 5 of each decade, or at powers of two of bytes.
  function ticksOf(name, points) {
    const low = Math.min(...points.map((p) => p.low)), high = Math.max(...points.map((p) => p.high)), ratio = high / low;
    if (!state.log) {
      const unit = name === "memory" ? 2 ** Math.ceil(Math.log2(high / 6)) : 10 ** Math.floor(Math.log10(high / 2));
      const step = name === "memory" ? unit : unit * [1, 2, 5].find((n) => high / (unit * n) <= 8);
      return Array.from({ length: Math.floor(high / step) + 1 }, (_, n) => n * step);
    }
    const base = name === "memory" ? (ratio > 64 ? 4 : 2) : 10;
    const steps = name === "memory" ? [1] : ratio > 300 ? [1] : ratio > 6 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7];
    const found = [], log = (x) => Math.log(x) / Math.log(base);
    for (let power = Math.floor(log(low)) - 1; power <= log(high) + 1; power += 1) found.push(...steps.map((step) => Number((step * base ** power).toPrecision(12))));
    return found.filter((tick) => tick > low / 1.6 && tick < high * 1.6);
  }

  function roofline(found) {
    const points = found.filter((f) => f.intensity && f.tflops).map((f) => ({ ...drawn(f.row.backend), intensity: f.intensity, rate: f.tflops * 1e12, said: f.said }));
    const roofs = page.roofs[Number(chosen.set)], lines = [];
    const matrix = (roofs.matmul_flops_per_s || {})[chosen.dtype], copy = roofs.copy_bytes_per_s;
    if (!points.length || !matrix || !copy) return { points, roofs: [] };
    const ridge = matrix / copy, seen = points.map((p) => p.intensity);
    const from = Math.min(ridge, ...seen) / 3, to = Math.max(ridge, ...seen) * 3;
    const line = (label, dash, ends) => ends.forEach(([intensity, rate], n) => lines.push({ name: label, label: n === ends.length - 1 ? label : "", dash, intensity, rate }));
    line(`matrix products, ${chosen.dtype}: ${digits(matrix / 1e12)} TFLOP/s`, [1, 0], [[from, from * copy], [ridge, matrix], [to, matrix]]);
    const one = found[0].row.case;
    if (roofs.exps_per_s && one.pairs) {
      const rate = roofs.exps_per_s * sumOf(one, "flops") / one.pairs;
      line("exponentials", [3, 3], [[Math.min(rate / copy, to), Math.min(rate, to * copy)], [to, rate]]);
    }
    return { points, roofs: lines };
  }

  // Charts.
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  function config() {
    const ink = style("--ink"), quiet = style("--quiet"), rule = style("--rule"), font = style("--font");
    return {
      background: "transparent", font, view: { stroke: null },
      title: { color: ink, anchor: "start", fontSize: 14, fontWeight: 600, offset: 10 },
      axis: { labelColor: quiet, titleColor: quiet, gridColor: rule, domainColor: rule, tickColor: rule, labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal" },
      text: { color: quiet }, rule: { color: quiet }, rect: { color: quiet }, line: { color: quiet },
    };
  }
  const views = new Map();
  const drawing = new Map();
  let arriving = null; // the view that the address names, until the charts above it have their height

  async function draw(element, name, data, signals = {}) {
    const look = `${theme()} ${state.log}`;
    const known = views.get(element);
    const empty = !data.points.length;
    element.classList.toggle("empty", empty);
    if (empty) {
      if (known) known.view.finalize();
      views.delete(element);
      element.textContent = `${page.specs[name].title}: nothing right was timed here.`;
      return;
    }
    if (known && known.look === look) {
      for (const [key, values] of Object.entries(data)) known.view.data(key, values);
      for (const [key, value] of Object.entries(signals)) known.view.signal(key, value);
      await known.view.resize().runAsync();
      return;
    }
    const text = JSON.stringify(page.specs[name]);
    const spec = JSON.parse(state.log || !QUANTITIES.includes(name) ? text : text.replaceAll('"type":"log"', '"type":"linear"').replaceAll('"base":2,', ""));
    if (ROW_HEIGHT[name]) spec.height = ROW_HEIGHT[name] * new Set(data.points.map((p) => p.backend)).size;
    for (const one of spec.params || []) if (one.name in signals) one.value = signals[one.name];
    const options = { renderer: "svg", actions: false, ast: true, config: config(), logLevel: 1 };
    const made = await vegaEmbed(element, { ...spec, datasets: data }, options);
    views.set(element, { view: made, look });
    views.get(element).view = made.view;
  }
  // One drawing of an element after the other, and only the newest of those that wait.
  function ask(element, ...what) {
    const waits = drawing.has(element);
    drawing.set(element, what);
    if (waits) return;
    (async () => {
      while (drawing.get(element)) {
        const next = drawing.get(element);
        drawing.set(element, null);
        await draw(element, ...next);
      }
      drawing.delete(element);
      document.documentElement.dataset.drawing = String(drawing.size);
      if (!drawing.size && arriving) arriving.scrollIntoView();
      if (!drawing.size) arriving = null;
    })();
    document.documentElement.dataset.drawing = String(drawing.size);
  }

  function drawFixed() {
    for (const element of $$(".noise")) {
      const points = page.noise[Number(element.dataset.setChart)].map((n) => ({ ...drawn(n.backend), low: n.low, median: n.median, high: n.high, said: `${n.backend}: median ±${percent(n.median)}, 10 % ±${percent(n.low)}, 90 % ±${percent(n.high)}` }));
      if (element.offsetParent) ask(element, "noise", { points }, { across: decades(points.flatMap((p) => [p.low, p.high])) });
    }
    for (const element of $$(".ratios")) {
      const pair = page.compare[Number(element.dataset.pair)];
      const margin = [{ from: 1 / (1 + pair.margin), to: 1 + pair.margin, one: 1 }];
      const points = pair.points.map((p) => ({ ...drawn(p.backend), ...p }));
      const low = Math.min(...points.map((p) => p.low)), high = Math.max(...points.map((p) => p.high));
      ask(element, "compare", { points, margin }, { across: high / low > 4 ? decades([low, high]) : RATIOS.filter((tick) => tick > low && tick < high) });
    }
  }

  // Tables.
  const COLUMNS = [
    ["backend", (f) => f.row.backend], ["tokens", (f) => String(f.length)], ["time, median", (f) => ms(f.q && f.q[3])],
    ["10 %", (f) => ms(f.q && f.q[1])], ["90 %", (f) => ms(f.q && f.q[5])], ["least", (f) => ms(f.q && f.q[0])], ["samples", (f) => String(f.samples)],
    ["TFLOP/s", (f) => plain(f.tflops)], ["of the roof", (f) => percent(f.share)], ["FLOP/byte", (f) => plain(f.intensity)], ["peak memory", (f) => bytes(f.peak)],
    ["over least", (f) => f.peak && f.row.case.least_peak ? `${digits(f.peak / f.row.case.least_peak)}x` : "–"], ["error / budget", (f) => plain(f.error)],
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
  function drawTable(found) {
    $("#figures thead").replaceChildren(element("tr", ""));
    $("#figures thead tr").append(...COLUMNS.map(([name], n) => element("th", name, { scope: "col", class: n ? "n" : "" })));
    const order = [...found].sort((a, b) => a.length - b.length || (a.q ? a.q[3] : Infinity) - (b.q ? b.q[3] : Infinity));
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
        for (const value of round) points.push({ ...drawn(f.row.backend), shape: which === "fwd" ? "circle" : "cross", round: n + 1, value, said: `${PASSES[which]}, round ${n + 1}: ${ms(value)}` });
      }
    }
    $("#raw").hidden = false;
    $("#raw-told").textContent = `${f.said.replaceAll("\n", "; ")}. ${points.length ? "Circles: forward; crosses: backward." : "A set this large keeps quantiles only; the samples are in its results.jsonl."}`;
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
    const found = shown.map(figuresOf).filter((f) => {
      const key = f && JSON.stringify([f.row.backend, f.row.case.id]);
      return f && !seen.has(key) && seen.add(key);
    });
    drawControls(rows);
    const lengths = [...new Set(chosen.cases.map((one) => one.length))].sort((a, b) => a - b);
    for (const name of QUANTITIES) {
      const points = pointsOf(name, found);
      ask($(`#chart-${name}`), name, { points }, { across: lengths, up: ticksOf(name, points) });
    }
    const roofs = roofline(found), drawnPoints = [...roofs.points, ...roofs.roofs];
    ask($("#chart-roofline"), "roofline", roofs, { across: decades(drawnPoints.map((p) => p.intensity)), up: decades(drawnPoints.map((p) => p.rate)) });
    drawTable(found);
    $("#raw").hidden = true;
    const absent = new Map();
    for (const row of rows) if (row.status !== "ok" && row.status !== "unavailable") absent.set(row.backend, `${row.status}${row.reason ? `: ${row.reason}` : ""}`);
    for (const row of rows) if (row.status === "ok" && !quantiles(row)) absent.set(row.backend, `right, not timed${row.notes ? `: ${row.notes}` : ""}`);
    $("#absent").replaceChildren(...(absent.size ? [element("strong", "Not in these charts: "), [...absent].map(([name, why]) => `${name} (${why})`).join("; ")] : []));
    $("#told").textContent = `${chosen.mask}, ${DIRECTIONS[chosen.direction] || chosen.direction}, ${chosen.heads}, ${chosen.dims}, ${chosen.dtype}, ${chosen.rest}: ${found.length} figures at ${lengths.length} lengths.`;
    for (const one of $$("[data-set]")) one.hidden = one.dataset.set !== chosen.set;
    drawFixed();
  }

  // The address: #view&mask=...&off=...
  const viewOf = () => decodeURIComponent(location.hash.slice(1).split("&")[0]) || "";
  function write(view) {
    const words = new URLSearchParams(FIELDS.map((name) => [name, chosen[name]]));
    if (state.pass !== "whole") words.set("pass", state.pass);
    if (!state.log) words.set("log", "0");
    for (const name of state.off) words.append("off", name);
    history.replaceState(null, "", `#${view}&${words}`);
  }
  function read() {
    const [view, ...rest] = location.hash.slice(1).split("&");
    const words = new URLSearchParams(rest.join("&"));
    if (rest.length) {
      choose({ ...chosen, ...Object.fromEntries(words) }, "mask");
      state.pass = words.get("pass") in PASSES ? words.get("pass") : "whole";
      state.log = words.get("log") !== "0";
      state.off = new Set(words.getAll("off"));
    }
    drawAll();
    const section = ["overview", "explore", "trust", "compare"].includes(view) && document.getElementById(view);
    if (section) section.scrollIntoView();
    arriving = section || null;
  }

  function changed(event) {
    const target = event.target, field = target.dataset.field;
    if (field === "pass") state.pass = target.value;
    else if (field === "log") state.log = target.checked;
    else if (field) choose({ ...chosen, [field]: target.value }, field);
    else if (target.checked) state.off.delete(target.value);
    else state.off.add(target.value);
    const focused = document.activeElement && document.activeElement.value;
    drawAll();
    write(field === "set" ? viewOf() || "overview" : "explore");
    if (!field) for (const box of $$("#backends input")) if (box.value === focused) box.focus();
  }
  $("#controls").addEventListener("change", changed);
  $("#controls").addEventListener("submit", (event) => event.preventDefault());
  if ($("#set")) $("#set").addEventListener("change", changed);
  $("#all").addEventListener("click", () => { state.off.clear(); drawAll(); write("explore"); });
  $("#none").addEventListener("click", () => { for (const box of $$("#backends input")) state.off.add(box.value); drawAll(); write("explore"); });
  addEventListener("hashchange", read);

  // Grids by shape, maps by tensor: one at a time, or all.
  for (const [select, part, key] of [[".shape", ".grid", "shape"], [".tensor", ".heat", "tensor"]]) {
    for (const one of $$(select)) {
      one.addEventListener("change", () => {
        for (const grid of $$(part, one.closest("[data-set]"))) grid.hidden = one.value !== "all" && grid.dataset[key] !== one.value;
      });
    }
  }

  function setTheme(name) {
    document.documentElement.dataset.theme = name;
    $("#theme").setAttribute("aria-pressed", String(name === "dark"));
    drawAll();
  }
  const remembered = () => { try { return localStorage.getItem("attnbench-theme"); } catch { return null; } };
  $("#theme").setAttribute("aria-pressed", String(theme() === "dark"));
  $("#theme").addEventListener("click", () => {
    const name = theme() === "dark" ? "light" : "dark";
    try { localStorage.setItem("attnbench-theme", name); } catch { /* a page from disk may have no storage */ }
    setTheme(name);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  if (remembered()) { document.documentElement.dataset.theme = remembered() === "dark" ? "dark" : "light"; $("#theme").setAttribute("aria-pressed", String(theme() === "dark")); }
  if (offered.length) read();
})();
