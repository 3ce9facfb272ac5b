// The form, the address and the theme. Last: the scripts share one scope.

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
