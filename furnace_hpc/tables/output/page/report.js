// The table: sort and filter its rows, and show the runs behind each cell.

const data = JSON.parse(document.getElementById("data").textContent);
const table = document.getElementById("table"), heads = [...table.tHead.rows[0].cells];
const body = table.tBodies[0];
/** Show the values of one metric in `data` and its rows. */
function use(view) {
  const { values, ...others } = view;
  Object.assign(data, others);
  data.rows.forEach((row, number) => Object.assign(row, values[number]));
}
use(data.views[0]);
const hint = document.getElementById("hint"), dialog = document.getElementById("runs");
const show = (value, digits) => (value * data.factor).toFixed(digits);
const code = (text) => (text ? make("code", {}, String(text)) : null);

/** Attributes of the button in a cell. */
const ofButton = (number, column) => ({
  type: "button", tabindex: column ? -1 : 0, "aria-haspopup": "dialog", onclick: () => open(number, column),
});
const columns = heads.map((head) => head.dataset.column);
/** Content of a cell of a long table: of the metric that is shown, else the same for all metrics. */
const valueOf = (number, name) => {
  const ofMetric = selectedView ? data.rows[number].cells[name] : undefined;
  return ofMetric ?? data.cells[number][columns.indexOf(name)];
};
let selectedView = 0; // number of the metric
const tableRows = data.cells ? longRows(body, data.rows.length, columns, valueOf, ofButton) : plainRows(body);
const allRows = [...Array(tableRows.count).keys()]; // in the grid's order
let order = allRows, kept = new Set(allRows); // as sorted, and as filtered

/** Sort key of a cell: its text, or its first number. Null if the value is missing. */
function key(number, column) {
  const text = tableRows.text(number, column).replaceAll(",", "").trim();
  if (WORDS.includes(columns[column])) return text.toLowerCase();
  const found = text.match(/^[^\d+-]?([+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)/i);
  return found ? Number(found[1]) : null;
}

function sort(head) {
  const next = { descending: "ascending", ascending: "none" }[head.getAttribute("aria-sort")] || "descending";
  for (const other of heads) other.removeAttribute("aria-sort");
  const column = head.cellIndex, sign = next === "ascending" ? 1 : -1;
  order = allRows;
  if (next !== "none") {
    head.setAttribute("aria-sort", next);
    const keys = allRows.map((number) => key(number, column));
    order = [...allRows].sort((a, b) => {
      const one = keys[a], other = keys[b];
      if (one === null || other === null) return (one === null) - (other === null);
      return one < other ? -sign : one > other ? sign : 0;
    });
  }
  tableRows.show(order, kept);
  hint.textContent = next === "none" ? "in the grid's order" : `sorted by ${head.textContent}, ${next}`;
}

let searched = null; // text of each row, until another metric is shown

function filter(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const textOfRow = (number) => columns.map((_, column) => tableRows.text(number, column)).join("\n").toLowerCase();
  searched ??= allRows.map(textOfRow);
  kept = new Set(allRows.filter((number) => words.every((word) => searched[number].includes(word))));
  tableRows.show(order, kept);
  hint.textContent = `${kept.size} of ${allRows.length} rows`;
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
    if (titles[n] !== "log of rank 0") return String(cell);
    const [name, href] = cell;
    return href ? make("a", { href, target: "_blank" }, code(name)) : code(name);
  };
  const lines = attempts.map((cells) => make("tr", {}, ...cells.map((cell, n) => make("td", {}, content(cell, n)))));
  const head = make("tr", {}, ...titles.map((title) => make("th", { scope: "col" }, title)));
  const whole = make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines));
  return make("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "attempts" }, whole);
}

/** Value of the row and of the reference, and their difference, for each draw. */
function pairTable(row) {
  const reference = data.rows.find((other) => other.variant === data.reference);
  if (!row.difference || !reference) return "";
  const key = ([pack, seed]) => JSON.stringify([pack, seed]);
  const theirs = new Map(reference.draws.map((draw, n) => [key(draw), reference.values[n]]));
  const both = row.draws.map((draw, n) => [draw, row.values[n], theirs.get(key(draw))]).filter(([, , other]) => other !== undefined);
  const { digits } = row.difference, signed = (value) => (value >= 0 ? "+" : "") + show(value, digits);
  const lines = both.map(([[pack, seed], value, other]) => {
    const cells = [pack ? `${pack}, seed ${seed}` : `seed ${seed}`, show(value, digits), show(other, digits), signed(value - other)];
    return make("tr", {}, ...cells.map((text) => make("td", {}, text)));
  });
  const titles = ["pair", row.variant, data.reference, `difference${spaced(data.difference_unit)}`];
  const head = make("tr", {}, ...titles.map((title) => make("th", { scope: "col" }, title)));
  const whole = make("table", { class: "pairs" }, make("thead", {}, head), make("tbody", {}, ...lines));
  const text = make("p", { class: "about" }, `Difference to ${data.reference}${spaced(data.difference_unit)}: ${row.difference.text}`);
  const region = make("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "pairs" }, whole);
  return make("div", {}, make("h3", {}, `Pairs in ${data.metric}${spaced(data.unit)}`), region, text, facts(row.difference.facts));
}

/** Median, lowest and highest run of each cost in which the runs of a row differ. */
function costFacts(row) {
  const known = Object.entries(row.ranges).filter(([name]) => data.costs[name]);
  if (!known.length) return "";
  const texts = known.map(([name, range]) => [data.costs[name], `${short(row.costs[name])} (${range})`]);
  return make("div", { class: "costs" }, make("h3", {}, "Median cost (lowest to highest run)"), facts(texts));
}

function runBlock(run, of_run, digits) {
  const value = typeof of_run === "number" ? show(of_run, digits) : of_run ?? "no value";
  const entries = [
    ["run", code(run.id)],
    ["state", run.state + (run.reason ? `: ${run.reason}` : "")],
    [run.state === "done" ? "selected step" : "step", run.steps === null ? null : `${run.step} of ${run.steps}`],
    ["commit", code(run.commit)],
    ["code", code(run.code)],
    ["job", code(run.job)],
    [data.is_foreign ? "read from" : "folder", code(run.folder)],
  ];
  const draw = run.pack ? `${run.pack}, seed ${run.seed}` : `seed ${run.seed}`;
  const title = make("h3", {}, `${draw}: ${run.state === "done" ? value : run.state}`);
  const none = make("p", { class: "about" }, "no attempts recorded");
  const attempts = run.attempts.length ? attemptTable(run.attempts) : none;
  if (data.is_foreign) return make("div", { class: "run" }, title, facts(entries));
  return make("div", { class: "run" }, title, facts(entries), attempts);
}

/** Show the runs of a row. `column` is the column of the clicked cell, or 0. */
function open(number, column = 0) {
  const row = data.rows[number], cell = tableRows.text(number, column).trim();
  const clicked = column ? `${heads[column].textContent}: ${cell}. ` : "";
  const changes = row.changes.map(([name, before, after]) => [name, `${before} → ${after}`]);
  const close = { type: "button", class: "round", "aria-label": "Close", onclick: () => dialog.close() };
  let same = `This row has the same config as ${data.reference}.`;
  if (data.is_foreign) same = `The files name no setting in which this row differs from ${data.reference}.`;
  if (row.variant === data.reference) same = "This row is the reference.";
  dialog.replaceChildren(
    make("header", {}, make("h2", { id: "runs-title" }, row.variant), make("button", close, "✕"),
      make("p", { class: "facts" }, `${clicked}In the mean: ${row.values.length} of ${row.runs.length} runs.`)),
    changes.length ? make("h3", {}, `Changes to ${data.reference}`) : make("p", { class: "about" }, same),
    changes.length ? facts(changes) : "",
    pairTable(row),
    costFacts(row),
    ...row.runs.map((run, n) => runBlock(run, row.of_runs[n], row.digits)));
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
if (data.cells) {
  document.getElementById("more-rows").textContent = `${allRows.length.toLocaleString("en")} rows, drawn while you ` +
    "scroll. Search with Filter rows: the browser's own search finds only rows that are drawn.";
} else {
  tableRows.rows.forEach((row, number) => [...row.cells].forEach((cell, column) => {
    cell.replaceChildren(make("button", ofButton(number, column), ...cell.childNodes));
  }));
}
body.addEventListener("keydown", move);
document.getElementById("filter").parentNode.hidden = false;
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

/** Copy a text, also from a file: page, where some browsers have no clipboard API. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = make("textarea", { readonly: "", "aria-hidden": "true", class: "skip" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

for (const [name, text] of Object.entries(data.copies)) {
  const onclick = async () => {
    const done = await copyText(text);
    hint.textContent = done ? `copied the table as ${name}` : `the browser allows no copy. The same text is in the file beside this report`;
  };
  document.getElementById("copies").append(make("button", { type: "button", class: "copy", onclick }, name));
}
document.getElementById("copies").hidden = false;

/** Name the number of columns that are hidden to the right. */
function updateCue() {
  const wide = table.parentNode, cue = document.getElementById("cue"), edge = wide.getBoundingClientRect().right;
  const hiddenColumns = heads.filter((head) => head.offsetParent && head.getBoundingClientRect().right > edge + 2).length;
  cue.textContent = hiddenColumns ? `${hiddenColumns} more ${hiddenColumns === 1 ? "column" : "columns"} →` : "";
  wide.classList.toggle("scrolled", wide.scrollLeft > 0);
}
table.parentNode.addEventListener("scroll", updateCue, { passive: true });

/** Show another metric in the table and in the charts. Its text cells come with the page. */
function showMetric(number) {
  const view = data.views[number];
  use(view);
  for (const [name, title] of Object.entries(view.titles)) {
    const head = heads.find((head) => head.dataset.column === name);
    if (head) head.querySelector("button").textContent = title;
  }
  selectedView = number;
  searched = null;
  tableRows.redraw?.();
  tableRows.rows?.forEach((row, n) => heads.forEach((head, column) => {
    const text = view.values[n].cells[head.dataset.column];
    if (text === undefined) return;
    const button = row.cells[column].querySelector("button");
    if (head.dataset.column !== "metric") {
      button.textContent = joined(text);
      return;
    }
    const [mean, spread, best] = text;
    button.replaceChildren(best ? make("strong", {}, mean) : mean, ` ${joined(spread)}`);
  }));
  for (const other of heads) other.removeAttribute("aria-sort");
  order = allRows;
  tableRows.show(order, kept);
  document.getElementById("of-metric").textContent = view.why_no_verdict;
  for (const text of document.querySelectorAll(".of-grid")) text.hidden = number > 0;
  drawCharts();
}

if (data.views.length > 1) {
  const options = data.views.map((view, number) => make("option", { value: number }, view.metric));
  const onchange = (event) => showMetric(Number(event.target.value));
  const choice = make("select", { id: "metric", onchange }, ...options);
  document.getElementById("metrics").append(choice);
  document.getElementById("metrics").hidden = false;
}

/** Draw the charts for the current width, so that their text has the size of the page's text. */
function drawCharts() {
  const place = document.getElementById("charts"), whole = place.clientWidth || 600, inner = whole < 640 ? 30 : 42;
  const half = whole >= 916 ? (whole - 20) / 2 : whole;
  // A long table has charts of some rows, and a sentence that says which.
  const shown = data.drawn ? { ...data, rows: data.drawn.map((number) => data.rows[number]) } : data;
  const openShown = (number) => open(data.drawn ? data.drawn[number] : number);
  const note = () => (data.drawn ? make("p", { class: "about full" }, `Charts show ${data.drawn_rows}.`) : null);
  const charts = [note(), drawCurves(shown, whole - inner)];
  for (const draw of [drawMeans, drawCosts]) charts.push(draw(shown, half - inner, show, openShown));
  place.replaceChildren(...charts.filter(Boolean));
  const first = document.getElementById("differences");
  first.replaceChildren();
  const forest = drawDifferences(shown, Math.max(280, first.clientWidth), show, openShown);
  if (forest) first.append(...[note(), forest].filter(Boolean));
  updateCue();
  place.dataset.width = whole;
}
drawCharts();
addEventListener("resize", () => {
  const place = document.getElementById("charts");
  if (place.clientWidth && place.clientWidth !== Number(place.dataset.width)) drawCharts();
});
