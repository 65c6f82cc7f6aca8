"use strict";
// Charts of the page's data: means with intervals, and score against cost.

const SVG = ["svg", "g", "path", "line", "circle", "text", "rect", "title"];
const DASHES = ["", "8 3", "2 3", "8 3 2 3"];
const LINE = 46; // pixels per row
const color = (row) => `var(--c${row % 7})`;
const dash = (row) => DASHES[(row + Math.floor(row / 7)) % 4];
const spaced = (unit) => (unit ? ` ${unit}` : "");
const short = (value) => Number(value.toPrecision(5)).toLocaleString("en", { maximumFractionDigits: 6 });

/** Make an element with attributes and children. Text is never parsed as HTML. */
function make(tag, attributes = {}, ...children) {
  const known = SVG.includes(tag);
  const node = known ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** About `count` round numbers in [low, high], and more than one if possible. */
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const steps = [0.5, 1, 2, 5, 10].map((n) => n * power), first = steps.findIndex((n) => n >= rough * 0.999);
  let found = [];
  for (let number = first; number >= 0 && found.length < 2; number--) {
    const step = steps[number];
    found = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n++) found.push(n * step);
  }
  return found.map((value) => Number(value.toPrecision(12)));
}

/** Linear scale from the values, with a margin on both sides, to the pixels [from, to]. */
function scale(values, from, to, margin = 0.06) {
  let low = Math.min(...values), high = Math.max(...values);
  if (low === high) [low, high] = [low - (Math.abs(low) * 0.05 || 1), high + (Math.abs(high) * 0.05 || 1)];
  const pad = (high - low) * margin, count = Math.max(2, Math.min(6, Math.round(Math.abs(to - from) / 60)));
  [low, high] = [low - pad, high + pad];
  const place = (value) => from + ((value - low) / (high - low)) * (to - from);
  return Object.assign(place, { ticks: ticks(low, high, count) });
}

function axes(x, y, box, xTitle, yTitle) {
  const group = make("g", { "aria-hidden": "true" });
  const line = (x1, x2, y1, y2) => group.append(make("line", { class: "grid-line", x1, x2, y1, y2 }));
  const text = (x, y, anchor, label) => group.append(make("text", { x, y, "text-anchor": anchor }, label));
  for (const at of x.ticks) {
    line(x(at), x(at), box.top, box.bottom);
    text(x(at), box.bottom + 18, "middle", short(at));
  }
  for (const at of y ? y.ticks : []) {
    line(box.left, box.right, y(at), y(at));
    text(box.left - 8, y(at) + 4, "end", short(at));
  }
  text(box.right, box.bottom + 38, "end", xTitle);
  if (yTitle) text(0, 12, "start", yTitle);
  return group;
}

function card(title, about, controls, ...body) {
  const head = make("div", { class: "bar" }, make("h2", {}, title), controls);
  return make("section", {}, head, ...body, make("p", { class: "about" }, about));
}

const shortened = (text, letters) => (text.length > letters ? `${text.slice(0, letters - 1)}…` : text);

/** A clickable part of a chart, also for the keyboard. `label` describes it. */
function mark(label, act, ...children) {
  const onkeydown = (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    act();
  };
  const attributes = { class: "mark", tabindex: 0, role: "button", "aria-label": label, onclick: act, onkeydown };
  return make("g", attributes, make("title", {}, label), ...children);
}

/** Draw the seeds of each row as dots, and below them its mean with the interval. */
function drawMeans(data, width, show, open) {
  const known = data.rows.filter((row) => row.mean !== null);
  if (!known.length) return null;
  const letters = Math.min(Math.floor(width / 20), Math.max(...data.rows.map((row) => row.variant.length)));
  const height = LINE * data.rows.length;
  const box = { left: 20 + 7.4 * letters, right: width - 8, top: 4, bottom: height + 4 };
  const scaled = (row) => [...row.values, row.mean, ...(row.interval || [])].map((value) => value * data.factor);
  const x = scale(known.flatMap(scaled), box.left, box.right), at = (value) => x(value * data.factor);
  const title = `Mean of ${data.metric} with 95 % interval, one line per variant`;
  const chart = make("svg", { viewBox: `0 0 ${width} ${height + 46}`, role: "group", "aria-label": title });
  chart.append(axes(x, null, box, data.metric + spaced(data.unit)));
  const reference = known.find((row) => row.variant === data.reference);
  if (reference) {
    const middle = at(reference.mean);
    chart.append(make("line", { class: "guide", x1: middle, x2: middle, y1: box.top, y2: box.bottom }));
  }
  data.rows.forEach((row, number) => {
    const y = box.top + LINE * (number + 0.5), fill = color(number);
    const name = shortened(row.variant, letters);
    chart.append(make("text", { class: "name", x: box.left - 12, y: y + 4, "text-anchor": "end" }, name));
    if (row.mean === null) {
      chart.append(make("text", { x: box.left + 8, y: y + 4 }, "no value"));
      return;
    }
    const interval = row.interval ? `, 95 % interval ${row.interval.map((bound) => show(bound, row.digits)).join(" to ")}` : "";
    const label = `${row.variant}: mean ${show(row.mean, row.digits)}${interval}, n=${row.values.length}`;
    const area = { x: box.left, y: y - 20, width: box.right - box.left, height: 40, fill: "transparent" };
    const group = mark(label, () => open(number), make("rect", area));
    const seeds = row.values.map((value) => make("circle", { class: "seed", cx: at(value), cy: y - 8, r: 4, fill }));
    group.append(...seeds);
    if (row.interval) {
      const [x1, x2] = row.interval.map(at);
      group.append(make("line", { class: "interval", x1, x2, y1: y + 8, y2: y + 8, stroke: fill }));
    }
    group.append(make("circle", { class: "mean", cx: at(row.mean), cy: y + 8, r: 5.5, fill }));
    chart.append(group);
  });
  const dots = data.unit_of_pairs === "seed" ? "seeds" : "runs";
  const about = `Line: mean with 95 % interval. Faint dots: ${dots}. Dashed: mean of the reference.`;
  return card("Means", about, null, chart);
}

let cost = null; // name of the selected cost

/** Draw score against a cost that the user selects. */
function drawCosts(data, width, show, open) {
  const has = (row, name) => row.mean !== null && typeof row.costs[name] === "number";
  const names = Object.keys(data.costs).filter((name) => data.rows.filter((row) => has(row, name)).length > 1);
  if (!names.length) return null;
  const place = make("div");
  const draw = (name) => {
    cost = name;
    place.replaceChildren(costChart(data, width, show, open, name, (row) => has(row, name)));
  };
  const options = names.map((name) => make("option", { value: name }, data.costs[name]));
  const choice = make("select", { "aria-label": "Cost", onchange: (event) => draw(event.target.value) }, ...options);
  choice.value = names.includes(cost) ? cost : names[0];
  draw(choice.value);
  return card("Score against cost", "Point: mean score and median cost of the runs. Line: 95 % interval of the score.", choice, place);
}

function costChart(data, width, show, open, name, has) {
  const rows = data.rows.map((row, number) => ({ ...row, number })).filter(has);
  const box = { left: 48, right: width - 8, top: 26, bottom: 270 };
  const x = scale(rows.map((row) => row.costs[name]), box.left, box.right, 0.14);
  const heights = rows.flatMap((row) => [row.mean, ...(row.interval || [])]).map((value) => value * data.factor);
  const y = scale(heights, box.bottom, box.top);
  const title = `${data.metric} against ${data.costs[name]}, one point per variant`;
  const chart = make("svg", { viewBox: `0 0 ${width} 312`, role: "group", "aria-label": title });
  chart.append(axes(x, y, box, data.costs[name], data.metric + spaced(data.unit)));
  const taken = []; // places of the earlier labels
  for (const row of rows) {
    const at = x(row.costs[name]), stroke = color(row.number), toLeft = at > (box.left + box.right) / 2;
    const label = `${row.variant}: ${show(row.mean, row.digits)} at ${data.costs[name]} ${short(row.costs[name])}`;
    const group = mark(label, () => open(row.number));
    if (row.interval) {
      const [y1, y2] = row.interval.map((bound) => y(bound * data.factor));
      group.append(make("line", { class: "interval", x1: at, x2: at, y1, y2, stroke, opacity: 0.6 }));
    }
    const down = y(row.mean * data.factor), anchor = toLeft ? "end" : "start";
    group.append(make("circle", { class: "mean", cx: at, cy: down, r: 7, fill: stroke }));
    const from = at + (toLeft ? -12 : 12), length = 7 * row.variant.length; // about 7 pixels per letter
    const left = toLeft ? from - length : from;
    let below = down + 4;
    while (taken.some(([x0, x1, line]) => x0 < left + length && left < x1 && Math.abs(line - below) < 16)) below += 16;
    taken.push([left, left + length, below]);
    group.append(make("text", { class: "name", x: from, y: below, "text-anchor": anchor }, row.variant));
    chart.append(group);
  }
  return chart;
}
