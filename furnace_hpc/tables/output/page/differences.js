// Forest plot: the paired differences of each row to the reference.

/** Draw the pairs of each row as dots, and below them the mean with its interval. */
function drawDifferences(data, width, show, open) {
  const rows = data.rows.map((row, number) => ({ ...row, number })).filter((row) => row.difference);
  if (!rows.length) return null;
  const line = 36, height = line * rows.length, withText = width >= 560; // numbers beside the plot
  const names = rows.map((row) => row.variant);
  const letters = Math.min(Math.floor(width / 22), Math.max(...names.map((name) => name.length)));
  const texts = rows.map((row) => row.difference.text);
  const right = withText ? 16 + 6.6 * Math.min(32, Math.max(...texts.map((text) => text.length))) : 10;
  const box = { left: 20 + 7.4 * letters, right: width - right, top: 4, bottom: height + 4 };
  const sesoi = data.sesoi === null ? [] : [-data.sesoi, data.sesoi];
  const all = rows.flatMap(({ difference }) =>
    [difference.mean, ...(difference.interval || []), ...difference.pairs.map(([, value]) => value)]);
  const x = scale([0, ...sesoi, ...all].map((value) => value * data.factor), box.left, box.right);
  const at = (value) => x(value * data.factor);
  const title = `Differences to ${data.reference} in ${data.metric}, one line per variant`;
  const chart = make("svg", { viewBox: `0 0 ${width} ${height + 46}`, role: "group", "aria-label": title });
  if (sesoi.length) {
    const [from, to] = sesoi.map(at), size = { y: box.top, width: to - from, height };
    chart.append(make("rect", { class: "sesoi", x: from, ...size }));
  }
  const better = { max: ", better →", min: ", ← better" }[data.better] || "";
  chart.append(axes(x, null, box, `difference to ${data.reference}${spaced(data.difference_unit)}${better}`));
  chart.append(make("line", { class: "zero", x1: at(0), x2: at(0), y1: box.top, y2: box.bottom }));
  rows.forEach((row, place) => {
    const y = box.top + line * (place + 0.5), name = shortened(row.variant, letters);
    chart.append(make("text", { class: "name", x: box.left - 12, y: y + 4, "text-anchor": "end" }, name));
    chart.append(differenceMark(row, y, at, box, data, show, open));
    if (withText) chart.append(make("text", { class: "name", x: box.right + 12, y: y + 4 }, shortened(texts[place], 32)));
  });
  return make("div", {}, chart, make("p", { class: "about" }, aboutDifferences(data)));
}

/** Dots, interval and mean of one row. */
function differenceMark(row, y, at, box, data, show, open) {
  const { mean, interval, pairs, digits, verdict } = row.difference, fill = color(row.number);
  const words = interval ? `, interval ${interval.map((bound) => show(bound, digits)).join(" to ")}` : "";
  const label = `${row.variant}: difference ${show(mean, digits)}${words}, ${pairs.length} pairs${verdict ? `, ${verdict}` : ""}`;
  const area = { x: box.left, y: y - 17, width: box.right - box.left, height: 34, fill: "transparent" };
  const group = mark(label, () => open(row.number), make("rect", area));
  for (const [name, value] of pairs) {
    const dot = make("circle", { class: "seed", cx: at(value), cy: y - 7, r: 3.5, fill });
    dot.append(make("title", {}, `${name}: ${show(value, digits)}`));
    group.append(dot);
  }
  if (interval) {
    const [x1, x2] = interval.map(at);
    group.append(make("line", { class: "interval", x1, x2, y1: y + 6, y2: y + 6, stroke: fill }));
  }
  group.append(make("circle", { class: "mean", cx: at(mean), cy: y + 6, r: 5, fill }));
  return group;
}

function aboutDifferences(data) {
  const kind = data.why_no_verdict ? "95 % interval, not corrected" : "simultaneous 95 % interval";
  const band = data.sesoi === null ? "" : ` Band: differences of less than ${data.effect} (sesoi).`;
  return `${data.metric}. Line: mean with ${kind}. Faint dots: ${data.unit_of_pairs}s.${band}`;
}
