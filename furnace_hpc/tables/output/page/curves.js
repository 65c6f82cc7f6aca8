// Learning curves. The pointer or the arrow keys select a step, and the legend shows the values there.

const hidden = new Set(); // rows whose curves are hidden
let selected = 0; // number of the metric

function drawCurves(data, width) {
  if (!data.curves.length) return null;
  const place = make("div");
  const draw = () => place.replaceChildren(...curveChart(data, data.curves[selected], width, draw));
  const options = data.curves.map((curve, number) => make("option", { value: number }, curve.metric));
  const onchange = (event) => {
    selected = Number(event.target.value);
    draw();
  };
  const choice = options.length > 1 ? make("select", { "aria-label": "Curve", onchange }, ...options) : null;
  if (choice) choice.value = selected;
  draw();
  const about = "Line: mean over the runs of a row. Band: smallest to largest seed. Hover, or focus the chart and use " +
    "the arrow keys, to see values. Click a name to hide its curve.";
  const section = card("Learning curves", about, choice, place);
  section.classList.add("full");
  return section;
}

function curveChart(data, curve, width, redraw) {
  const box = { left: 48, right: width - 8, top: 26, bottom: width < 500 ? 220 : 310 };
  const label = `${curve.metric} over optimizer steps. The left and right arrow keys select a step.`;
  const view = `0 0 ${width} ${box.bottom + 44}`;
  const chart = make("svg", { viewBox: view, tabindex: 0, role: "img", "aria-label": label });
  const [list, outputs] = legend(data, curve, redraw);
  const status = make("p", { class: "hint", id: "step" });
  const shown = curve.series.map((series, row) => ({ series, row }));
  const drawn = shown.filter(({ series, row }) => series[0].length && !hidden.has(row));
  if (drawn.length) {
    const lines = drawLines(chart, curve, drawn, box);
    follow(chart, lines, (step, announce) => {
      const values = drawn.map(({ series, row }) => {
        const n = series[0].indexOf(step);
        const [mean, low, high] = n < 0 ? [] : series.slice(1).map((part) => part[n].toFixed(curve.digits));
        const text = n < 0 ? "" : `${mean} [${low}, ${high}]`;
        outputs.get(row).textContent = text;
        return `${data.rows[row].variant} ${text || "no value"}`;
      });
      status.textContent = `step ${step.toLocaleString("en")}`;
      if (announce) chart.setAttribute("aria-label", `${curve.metric} at step ${step}: ${values.join("; ")}`);
    });
  }
  return [chart, status, list];
}

/** Buttons that hide and show the curves, with their values at the selected step. */
function legend(data, curve, redraw) {
  const outputs = new Map(), list = make("ul", { class: "legend" });
  data.rows.forEach((row, number) => {
    if (!curve.series[number][0].length) return;
    const onclick = () => {
      if (!hidden.delete(number)) hidden.add(number);
      redraw();
      document.querySelectorAll(".legend button")[[...outputs.keys()].indexOf(number)].focus();
    };
    const output = make("span", { class: "value" });
    const attributes = { type: "button", "aria-pressed": String(!hidden.has(number)), onclick };
    const sample = make("i", { style: `background:${color(number)}` });
    list.append(make("li", {}, make("button", attributes, sample, make("span", {}, row.variant), output)));
    outputs.set(number, output);
  });
  return [list, outputs];
}

/** Draw bands, means and axes. Returns the scales. */
function drawLines(chart, curve, drawn, box) {
  const steps = [...new Set(drawn.flatMap(({ series }) => series[0]))].sort((a, b) => a - b);
  const x = scale(steps, box.left, box.right, 0.015);
  const y = scale(drawn.flatMap(({ series }) => [...series[2], ...series[3]]), box.bottom, box.top);
  chart.append(axes(x, y, box, "optimizer steps", curve.metric + spaced(curve.unit)));
  const point = (step, value) => `${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
  for (const { series: [at, mean, low, high], row } of drawn) {
    const above = at.map((step, n) => point(step, high[n])), below = at.map((step, n) => point(step, low[n])).reverse();
    chart.append(make("path", { class: "band", d: `M${[...above, ...below].join("L")}Z`, fill: color(row) }));
    const d = `M${at.map((step, n) => point(step, mean[n])).join("L")}`;
    chart.append(make("path", { class: "curve", d, stroke: color(row), "stroke-dasharray": dash(row) }));
  }
  return { steps, x, y, box, drawn };
}

/** Select a step by pointer or keyboard, and call `onStep(step, announce)`. */
function follow(chart, { steps, x, y, box, drawn }, onStep) {
  const guide = make("line", { class: "guide", y1: box.top, y2: box.bottom }), dots = make("g");
  chart.append(guide, dots);
  let at = steps.length - 1;
  const select = (index, announce) => {
    at = Math.max(0, Math.min(steps.length - 1, index));
    guide.setAttribute("x1", x(steps[at]));
    guide.setAttribute("x2", x(steps[at]));
    const here = drawn.filter(({ series }) => series[0].includes(steps[at]));
    dots.replaceChildren(...here.map(({ series, row }) => {
      const value = series[1][series[0].indexOf(steps[at])];
      return make("circle", { class: "mean", cx: x(steps[at]), cy: y(value), r: 5, fill: color(row) });
    }));
    onStep(steps[at], announce);
  };
  chart.addEventListener("pointermove", (event) => {
    const area = chart.getBoundingClientRect();
    const pixel = ((event.clientX - area.left) / area.width) * chart.viewBox.baseVal.width;
    const away = steps.map((step) => Math.abs(x(step) - pixel));
    select(away.indexOf(Math.min(...away)), false);
  });
  chart.addEventListener("focus", () => select(at, true));
  chart.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    select(to, true);
  });
  select(at, false);
}
