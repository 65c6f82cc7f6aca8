// The table: sort and filter its rows, and show the runs behind each cell.

const data = JSON.parse(document.getElementById("data").textContent);
const table = document.getElementById("table"), heads = [...table.tHead.rows[0].cells];
const body = table.tBodies[0], rows = [...body.rows]; // in the grid's order
const hint = document.getElementById("hint"), dialog = document.getElementById("runs");
const show = (value, digits) => (value * data.factor).toFixed(digits);
const code = (text) => (text ? make("code", {}, String(text)) : null);

/** Sort key of a cell: its text, or its first number. Null if the value is missing. */
function key(cell) {
  const text = cell.textContent.replaceAll(",", "").trim();
  if (cell.classList.contains("text")) return text.toLowerCase();
  const number = text.match(/^[^\d+-]?([+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)/i);
  return number ? Number(number[1]) : null;
}

function sort(head) {
  const next = { descending: "ascending", ascending: "none" }[head.getAttribute("aria-sort")] || "descending";
  for (const other of heads) other.removeAttribute("aria-sort");
  const sorted = [...rows], column = head.cellIndex, sign = next === "ascending" ? 1 : -1;
  if (next !== "none") {
    head.setAttribute("aria-sort", next);
    sorted.sort((a, b) => {
      const one = key(a.cells[column]), other = key(b.cells[column]);
      if (one === null || other === null) return (one === null) - (other === null);
      return one < other ? -sign : one > other ? sign : 0;
    });
  }
  body.append(...sorted);
  hint.textContent = next === "none" ? "in the grid's order" : `sorted by ${head.textContent}, ${next}`;
}

function filter(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  hint.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
}

function facts(entries) {
  const known = entries.filter(([, value]) => value !== null && value !== "");
  const pairs = known.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  return make("dl", {}, ...pairs);
}

function attemptTable(attempts) {
  const titles = ["attempt", "job", "nodes", "seconds", "end reason", "last step", "log of rank 0"];
  const content = (cell, n) => {
    if (cell === null || cell === "") return "–";
    return titles[n] === "log of rank 0" ? code(cell) : String(cell);
  };
  const lines = attempts.map((cells) => make("tr", {}, ...cells.map((cell, n) => make("td", {}, content(cell, n)))));
  const head = make("tr", {}, ...titles.map((title) => make("th", { scope: "col" }, title)));
  const whole = make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines));
  return make("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "attempts" }, whole);
}

function runBlock(run, digits) {
  const value = typeof run.value === "number" ? show(run.value, digits) : run.value ?? "no value";
  const entries = [
    ["run", code(run.id)],
    ["state", run.state + (run.reason ? `: ${run.reason}` : "")],
    [run.state === "done" ? "selected step" : "step", run.steps === null ? null : `${run.step} of ${run.steps}`],
    ["commit", code(run.commit)],
    ["code", code(run.code)],
    ["job", code(run.job)],
    [run.steps === null ? "read from" : "folder", code(run.folder)],
  ];
  const draw = run.pack ? `${run.pack}, seed ${run.seed}` : `seed ${run.seed}`;
  const title = make("h3", {}, `${draw}: ${run.state === "done" ? value : run.state}`);
  const none = make("p", { class: "about" }, "no attempts recorded");
  const attempts = run.attempts.length ? attemptTable(run.attempts) : none;
  if (run.steps === null) return make("div", { class: "run" }, title, facts(entries)); // of another tool
  return make("div", { class: "run" }, title, facts(entries), attempts);
}

/** Show the runs of a row. `column` is the column of the clicked cell, or 0. */
function open(number, column = 0) {
  const row = data.rows[number], cell = rows[number].cells[column].textContent.trim();
  const clicked = column ? `${heads[column].textContent}: ${cell}. ` : "";
  const changes = row.changes.map(([name, before, after]) => [name, `${before} → ${after}`]);
  const close = { type: "button", class: "round", "aria-label": "Close", onclick: () => dialog.close() };
  const same = row.variant === data.reference ? "This row is the reference." : `This row has the same config as ${data.reference}.`;
  dialog.replaceChildren(
    make("header", {}, make("h2", { id: "runs-title" }, row.variant), make("button", close, "✕"),
      make("p", { class: "facts" }, `${clicked}${row.values.length} of ${row.runs.length} runs count.`)),
    changes.length ? make("h3", {}, `Difference to ${data.reference}`) : make("p", { class: "about" }, same),
    changes.length ? facts(changes) : "",
    row.pairs.length ? make("h3", {}, `Pairs with ${data.reference}`) : "",
    row.pairs.length ? facts(row.pairs) : "",
    ...row.runs.map((run) => runBlock(run, row.digits)));
  dialog.showModal();
  dialog.scrollTop = 0;
}

/** Move between the cells of the table with the arrow keys. Tab leaves the table. */
function move(event) {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const cell = event.target.closest("td, th"), step = steps[event.key];
  if (!step || !cell) return;
  const visible = [...body.rows].filter((row) => !row.hidden), shown = (cell) => cell.offsetParent;
  const row = visible[visible.indexOf(cell.parentNode) + step[0]], cells = [...(row?.cells || [])].filter(shown);
  const next = cells[[...cell.parentNode.cells].filter(shown).indexOf(cell) + step[1]]?.querySelector("button");
  if (!next) return;
  event.preventDefault();
  next.focus();
}

for (const head of heads) {
  head.replaceChildren(make("button", { type: "button", onclick: () => sort(head) }, ...head.childNodes));
}
rows.forEach((row, number) => [...row.cells].forEach((cell, column) => {
  const attributes = { type: "button", tabindex: column ? -1 : 0, "aria-haspopup": "dialog" };
  const onclick = () => open(number, column);
  cell.replaceChildren(make("button", { ...attributes, onclick }, ...cell.childNodes));
}));
body.addEventListener("keydown", move);
document.querySelector(".filter").hidden = false;
document.getElementById("filter").addEventListener("input", (event) => filter(event.target.value));
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
hint.textContent = "Click a heading to sort, or a cell to see its runs.";

const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const { dataset } = document.documentElement;
  dataset.theme = (dataset.theme || dark) === "dark" ? "light" : "dark";
});

/** Draw the charts for the current width, so that their text has the size of the page's text. */
function drawCharts() {
  const place = document.getElementById("charts"), whole = place.clientWidth || 600, inner = whole < 640 ? 30 : 42;
  const half = whole >= 916 ? (whole - 20) / 2 : whole;
  const charts = [drawCurves(data, whole - inner)];
  for (const draw of [drawMeans, drawCosts]) charts.push(draw(data, half - inner, show, open));
  place.replaceChildren(...charts.filter(Boolean));
  place.dataset.width = whole;
}
drawCharts();
addEventListener("resize", () => {
  const place = document.getElementById("charts");
  if (place.clientWidth && place.clientWidth !== Number(place.dataset.width)) drawCharts();
});
