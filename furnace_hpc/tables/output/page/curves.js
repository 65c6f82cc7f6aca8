// Learning curves: the pointer, or the arrow keys, choose a step, and the legend shows every row's values there.

const hidden = new Set(); // rows whose curve was clicked away
let chosen = 0; // the curve that is shown

function drawCurves(data, width) {
  if (!data.curves.length) return null;
  const place = make("div");
  const draw = () => place.replaceChildren(...curveChart(data, data.curves[chosen], width, draw));
  const options = data.curves.map((curve, number) => make("option", { value: number }, curve.metric));
  const onchange = (event) => {
    chosen = Number(event.target.value);
    draw();
  };
  const choice = options.length > 1 ? make("select", { "aria-label": "Curve", onchange }, ...options) : null;
  if (choice) choice.value = chosen;
  draw();
  const about = "Mean over the runs of a row; band: smallest to largest seed. Hover, or focus the picture and use " +
    "the arrow keys, for values; a name hides its curve.";
  const section = card("Learning curves", about, choice, place);
  section.classList.add("full");
  return section;
}

function curveChart(data, curve, width, redraw) {
  const box = { left: 48, right: width - 8, top: 26, bottom: width < 500 ? 220 : 310 };
  const label = `${curve.metric} over optimizer steps; left and right arrow keys choose a step`;
  const view = `0 0 ${width} ${box.bottom + 44}`;
  const chart = make("svg", { viewBox: view, tabindex: 0, role: "img", "aria-label": label });
  const [list, outputs] = legend(data, curve, redraw);
  const said = make("p", { class: "hint", id: "step" });
  const shown = curve.series.map((series, row) => ({ series, row }));
  const drawn = shown.filter(({ series, row }) => series[0].length && !hidden.has(row));
  if (drawn.length) {
    const lines = drawLines(chart, curve, drawn, box);
    follow(chart, lines, (step, speak) => {
      const words = drawn.map(({ series, row }) => {
        const n = series[0].indexOf(step);
        const [mean, low, high] = n < 0 ? [] : series.slice(1).map((part) => part[n].toFixed(curve.digits));
        const text = n < 0 ? "" : `${mean} [${low}, ${high}]`;
        outputs.get(row).textContent = text;
        return `${data.rows[row].variant} ${text || "no value"}`;
      });
      said.textContent = `step ${step.toLocaleString("en")}`;
      if (speak) chart.setAttribute("aria-label", `${curve.metric} at step ${step}: ${words.join("; ")}`);
    });
  }
  return [chart, said, list];
}

/** Names that hide and show their curves, with room for the values at a step. */
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

/** Bands, means and axes; returns where steps and values lie. */
function drawLines(chart, curve, drawn, box) {
  const steps = [...new Set(drawn.flatMap(({ series }) => series[0]))].sort((a, b) => a - b);
  const x = scale(steps, box.left, box.right, 0.015);
  const y = scale(drawn.flatMap(({ series }) => [...series[2], ...series[3]]), box.bottom, box.top);
  chart.append(axes(x, y, box, "optimizer steps", curve.metric + curve.unit));
  const point = (step, value) => `${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
  for (const { series: [at, mean, low, high], row } of drawn) {
    const above = at.map((step, n) => point(step, high[n])), below = at.map((step, n) => point(step, low[n])).reverse();
    chart.append(make("path", { class: "band", d: `M${[...above, ...below].join("L")}Z`, fill: color(row) }));
    const d = `M${at.map((step, n) => point(step, mean[n])).join("L")}`;
    chart.append(make("path", { class: "curve", d, stroke: color(row), "stroke-dasharray": dash(row) }));
  }
  return { steps, x, y, box, drawn };
}

/** Let pointer and keys choose a step, and tell it. */
function follow(chart, { steps, x, y, box, drawn }, tell) {
  const guide = make("line", { class: "guide", y1: box.top, y2: box.bottom }), dots = make("g");
  chart.append(guide, dots);
  let at = steps.length - 1;
  const go = (index, speak) => {
    at = Math.max(0, Math.min(steps.length - 1, index));
    guide.setAttribute("x1", x(steps[at]));
    guide.setAttribute("x2", x(steps[at]));
    const here = drawn.filter(({ series }) => series[0].includes(steps[at]));
    dots.replaceChildren(...here.map(({ series, row }) => {
      const value = series[1][series[0].indexOf(steps[at])];
      return make("circle", { class: "mean", cx: x(steps[at]), cy: y(value), r: 5, fill: color(row) });
    }));
    tell(steps[at], speak);
  };
  chart.addEventListener("pointermove", (event) => {
    const seen = chart.getBoundingClientRect();
    const pixel = ((event.clientX - seen.left) / seen.width) * chart.viewBox.baseVal.width;
    const away = steps.map((step) => Math.abs(x(step) - pixel));
    go(away.indexOf(Math.min(...away)), false);
  });
  chart.addEventListener("focus", () => go(at, true));
  chart.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    go(to, true);
  });
  go(at, false);
}
