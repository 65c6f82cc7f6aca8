// The rows of the table: all in the page, or those in view of a long table, drawn from the page's data.

const WORDS = ["variant", "changes", "verdict", "tuned"]; // columns of text
const EXTRA = 15; // rows that are drawn above and below those in view
const joined = (text) => text.replaceAll(", ", ",\u00a0").replaceAll("± ", "±\u00a0");

/** The cell of one column with its button, as in the HTML of a short table. */
function makeCell(name, value, attributes) {
  const withBest = ([mean, spread, best]) => [best ? make("strong", {}, mean) : mean, ` ${joined(spread)}`];
  if (name === "variant") {
    const parts = value[0].split(/(?<=[_-])/).flatMap((part, n) => (n ? [make("wbr"), part] : [part]));
    const marks = value[1] ? make("sup", {}, value[1]) : null;
    return make("th", { scope: "row", class: "text" }, make("button", attributes, make("span", {}, ...parts), marks));
  }
  let kind = WORDS.includes(name) ? `text ${name}` : name;
  if (name === "verdict") kind = "text word";
  if (name.startsWith("metric_")) kind = null;
  const content = Array.isArray(value) ? withBest(value) : [name === "difference" ? joined(value) : value];
  return make("td", { class: kind }, make("button", attributes, ...content));
}

/** Text of a cell, for sorting and searching. */
const textOf = (value) => (Array.isArray(value) ? value.filter((part) => typeof part === "string").join(" ") : value);

/** Rows that are all in the page. `show(order, kept)` sorts them and hides those that are not in the set `kept`. */
function plainRows(body) {
  const rows = [...body.rows];
  const show = (order, kept) => {
    rows.forEach((row, number) => (row.hidden = !kept.has(number)));
    body.append(...order.map((number) => rows[number]));
  };
  return { count: rows.length, rows, show, text: (number, column) => rows[number].cells[column].textContent };
}

/**
 * Rows of which only those in view are in the page. All have the same height.
 *
 * `valueOf(number, name)` is the content of a cell, and `attributesOf(number, column)` those of its button.
 */
function longRows(body, count, names, valueOf, attributesOf) {
  const region = body.parentNode.parentNode, drawn = new Map(); // number -> row in the page
  const space = () => make("tr", { "aria-hidden": "true", class: "space" }, make("td", { colspan: names.length }));
  const above = space(), below = space();
  let list = [...Array(count).keys()], height = 37;

  const makeRow = (number) => {
    const cells = names.map((name, column) => makeCell(name, valueOf(number, name), attributesOf(number, column)));
    return make("tr", { "data-row": number }, ...cells);
  };
  const draw = (all = false) => {
    const first = all ? 0 : Math.max(0, Math.floor(region.scrollTop / height) - EXTRA);
    const end = all ? list.length : Math.min(list.length, first + Math.ceil(region.clientHeight / height) + 2 * EXTRA);
    const wanted = list.slice(first, end), keep = new Set(wanted);
    for (const [number, row] of drawn) {
      if (!keep.has(number)) {
        row.remove();
        drawn.delete(number);
      }
    }
    let next = above.nextSibling; // rows that stay are not moved, so that they keep the focus
    wanted.forEach((number, place) => {
      if (!drawn.has(number)) drawn.set(number, makeRow(number));
      const row = drawn.get(number);
      row.setAttribute("aria-rowindex", first + place + 2); // the first is the heading
      if (row === next) next = next.nextSibling;
      else body.insertBefore(row, next);
    });
    above.firstChild.style.height = `${first * height}px`;
    below.firstChild.style.height = `${(list.length - end) * height}px`;
  };
  const clear = () => {
    drawn.clear();
    body.replaceChildren(above, below);
  };
  /** Make each column as wide as its longest text, so that scrolling changes no width. */
  const fix = () => {
    const heads = [...body.parentNode.tHead.rows[0].cells];
    for (const head of heads) head.style.minWidth = "";
    const length = (number, name) => textOf(valueOf(number, name)).length;
    const longest = names.map((name) => {
      let best = 0, most = -1;
      for (let number = 0; number < count; number++) {
        const letters = length(number, name);
        if (letters > most) [best, most] = [number, letters];
      }
      return best;
    });
    body.replaceChildren(...[...new Set(longest)].map(makeRow));
    height = body.rows[0].getBoundingClientRect().height || height;
    const widths = heads.map((head) => head.getBoundingClientRect().width);
    heads.forEach((head, n) => (head.style.minWidth = `${widths[n]}px`));
    clear();
    draw();
  };
  region.classList.add("long");
  body.parentNode.setAttribute("aria-rowcount", count + 1);
  region.addEventListener("scroll", () => draw(), { passive: true });
  addEventListener("resize", () => draw());
  addEventListener("beforeprint", () => draw(true));
  addEventListener("afterprint", () => draw());
  fix();
  const show = (order, kept) => {
    list = order.filter((number) => kept.has(number));
    region.scrollTop = 0;
    clear();
    draw();
  };
  return { count, show, redraw: fix, text: (number, column) => textOf(valueOf(number, names[column])) };
}
