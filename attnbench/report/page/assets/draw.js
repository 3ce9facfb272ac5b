// Draws the charts, and again after a change: Vega-Lite draws, colours come from the style sheet.

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
let arriving = null; // the view in the address, until the charts above it have their height

async function draw(element, name, data, signals = {}) {
  const look = `${theme()} ${state.log}`;
  const view = views.get(element);
  const empty = !data.points.length;
  element.classList.toggle("empty", empty);
  if (empty) {
    if (view) view.view.finalize();
    views.delete(element);
    element.textContent = `${page.specs[name].title}: nothing right was timed here.`;
    return;
  }
  if (view && view.look === look) {
    for (const [key, values] of Object.entries(data)) view.view.data(key, values);
    for (const [key, value] of Object.entries(signals)) view.view.signal(key, value);
    await view.view.resize().runAsync();
    return;
  }
  const text = JSON.stringify(page.specs[name]);
  const spec = JSON.parse(state.log || !QUANTITIES.includes(name) ? text : text.replaceAll('"type":"log"', '"type":"linear"').replaceAll('"base":2,', ""));
  if (ROW_HEIGHT[name]) spec.height = ROW_HEIGHT[name] * new Set(data.points.map((p) => p.backend)).size;
  for (const one of spec.params || []) if (one.name in signals) one.value = signals[one.name];
  const options = { renderer: "svg", actions: false, ast: true, config: config(), logLevel: 1 };
  const made = await vegaEmbed(element, { ...spec, datasets: data }, options);
  views.set(element, { view: made.view, look });
}

// A chart is drawn when it scrolls near, so that a large set opens soon; all are drawn before printing.
const near = new Set(), later = new Map();
function approach(element) {
  near.add(element);
  if (later.has(element)) ask(element, ...later.get(element));
  later.delete(element);
}
const watch = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) if (isIntersecting) approach(target);
}, { rootMargin: "30%" });
for (const element of $$(".chart")) watch.observe(element);
addEventListener("beforeprint", () => $$(".chart").forEach(approach));
for (const name of ["wheel", "touchmove", "keydown", "pointerdown"]) addEventListener(name, () => { arriving = null; }, { passive: true });

// An element has one drawing at a time; of those that wait, only the newest is drawn.
function ask(element, ...what) {
  if (!near.has(element)) {
    later.set(element, what);
    return;
  }
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
    element.style.minHeight = `${90 + ROW_HEIGHT.noise * page.noise[Number(element.dataset.setChart)].length}px`;
    const points = page.noise[Number(element.dataset.setChart)].map((n) => ({ ...drawn(n.backend), low: n.low, median: n.median, high: n.high, text: `${n.backend}: median ±${percent(n.median)}, 10 % ±${percent(n.low)}, 90 % ±${percent(n.high)}` }));
    if (element.offsetParent) ask(element, "noise", { points }, { across: decades(points.flatMap((p) => [p.low, p.high])) });
  }
  for (const element of $$(".ratios")) {
    const pair = page.compare[Number(element.dataset.pair)];
    element.style.minHeight = `${90 + ROW_HEIGHT.compare * new Set(pair.points.map((p) => p.backend)).size}px`;
    const margin = [{ from: 1 / (1 + pair.margin), to: 1 + pair.margin, one: 1 }];
    const points = pair.points.map((p) => ({ ...drawn(p.backend), ...p }));
    const low = Math.min(...points.map((p) => p.low)), high = Math.max(...points.map((p) => p.high));
    ask(element, "compare", { points, margin }, { across: high / low > 4 ? decades([low, high]) : RATIOS.filter((tick) => tick > low && tick < high) });
  }
}
