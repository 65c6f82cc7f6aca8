"use strict";
const SHOWN = 10;
const form = document.getElementById("sample");
const button = form.querySelector(".predict");
const answer = document.getElementById("answer");
const used = document.getElementById("used");
const problem = document.getElementById("problem");
const tasks = document.getElementById("tasks");
const modalities = document.body.dataset.modalities.split(" ");
const maxBytes = Number(document.body.dataset.maxBytes);

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

// As Python writes them: a half is rounded to the even digit. Only quarters can be exact halves.
function percent(p) {
  const value = 100 * p;
  const isTie = Number.isInteger(4 * value) && !Number.isInteger(2 * value);
  const text = isTie && value % 1 === 0.25 ? `${Math.floor(value)}.2` : value.toFixed(1);
  return `${text} %`;
}

// Six significant digits without trailing zeros, as `furnace predict` prints numbers.
function plainNumber(value) {
  if (value === 0) return "0";
  const exponent = Number(value.toExponential(5).split("e")[1]);
  if (exponent < -4 || exponent >= 6) {
    const [digits, power] = value.toExponential(5).split("e");
    const short = digits.includes(".") ? digits.replace(/\.?0+$/, "") : digits;
    return `${short}e${power[0]}${power.slice(1).padStart(2, "0")}`;
  }
  const text = value.toPrecision(6);
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

function barsOf(task, labels) {
  const bars = element("dl", "", "bars");
  // An object of JavaScript has names such as "7" in the order of their numbers.
  const ordered = Object.entries(task.probabilities).sort((a, b) => b[1] - a[1]);
  ordered.forEach(([name, p], place) => {
    const row = labels.includes(name) ? "in" : "";
    const value = element("dd", percent(p), `p ${row}`);
    const track = element("dd", "", row);
    const line = element("div", "", "track");
    const bar = element("div", "", "bar");
    bar.style.width = `${100 * p}%`;
    line.append(bar);
    if (task.threshold !== undefined) {
      const limit = element("div", "", "limit");
      limit.style.left = `${100 * task.threshold}%`;
      limit.title = `threshold ${percent(task.threshold)}`;
      line.append(limit);
    }
    track.append(line);
    for (const part of [element("dt", name, row), track, value]) {
      part.hidden = place >= SHOWN;
      bars.append(part);
    }
  });
  return bars;
}

function numbersOf(task) {
  const values = element("dl", "", "bars");
  for (const [name, value] of Object.entries(task.values)) {
    values.append(element("dt", name), element("dd"), element("dd", plainNumber(value), "p in"));
  }
  return values;
}

function taskOf(name, task) {
  const made = element("div", "", "task");
  made.dataset.task = name;
  made.append(element("h3", name));
  if (task.values) {
    made.append(numbersOf(task));
    return made;
  }
  const labels = task.labels ?? [task.label];
  made.append(element("p", labels.join(", ") || "none", "label"));
  const bars = barsOf(task, labels);
  made.append(bars);
  const count = Object.keys(task.probabilities).length;
  if (count > SHOWN) {
    const more = element("button", `Show all ${count} classes`, "more");
    more.type = "button";
    more.addEventListener("click", () => {
      for (const part of bars.children) part.hidden = false;
      more.remove();
    });
    made.append(more);
  }
  return made;
}

function show(content) {
  const absent = modalities.filter((name) => !content.modalities.includes(name));
  used.textContent = `from ${content.modalities.join(", ")}`;
  if (absent.length) used.textContent += `; without ${absent.join(", ")}`;
  tasks.replaceChildren(...Object.entries(content.tasks).map(([name, task]) => taskOf(name, task)));
  answer.classList.remove("old");
}

function complain(text) {
  problem.textContent = text;
  problem.hidden = !text;
  if (text) answer.classList.add("old");
}

function sampleOf() {
  const data = new FormData();
  for (const field of form.querySelectorAll("textarea")) {
    if (field.value.trim()) data.append(field.name, field.value);
  }
  const numbers = {};
  for (const field of form.querySelectorAll("[data-number]")) {
    if (field.value.trim()) numbers[field.dataset.number] = field.value.trim();
  }
  if (Object.keys(numbers).length) data.append("numbers", JSON.stringify(numbers));
  for (const field of form.querySelectorAll("input[type=file]")) {
    if (field.files.length) data.append(field.name, field.files[0]);
  }
  return data;
}

async function predict() {
  complain("");
  const data = sampleOf();
  const size = [...data.values()].reduce((sum, value) => sum + (value.size ?? value.length), 0);
  if (size > maxBytes) {
    complain(`The sample has more than ${maxBytes / 2 ** 20} MiB. Choose a smaller file.`);
    return;
  }
  button.disabled = true;
  try {
    const response = await fetch("predict", { method: "POST", body: data });
    const content = await response.json();
    if (response.ok) show(content);
    else complain(content.error);
  } catch {
    complain("The server does not answer. It may have been stopped.");
  } finally {
    button.disabled = false;
  }
}

function preview(field) {
  const place = field.closest(".field");
  const drop = field.closest(".drop");
  const media = drop.querySelector("img, audio");
  const chosen = place.querySelector(".chosen");
  const [file] = field.files;
  if (media.src) URL.revokeObjectURL(media.src);
  const isShown = Boolean(file) && !file.name.endsWith(".npy");
  if (isShown) media.src = URL.createObjectURL(file);
  else media.removeAttribute("src");
  media.hidden = !isShown;
  drop.querySelector(".choose").hidden = isShown;
  chosen.hidden = !file;
  chosen.firstElementChild.textContent = file ? `${file.name}, ${(file.size / 1024).toFixed(1)} KiB` : "";
}

for (const drop of form.querySelectorAll(".drop")) {
  const field = drop.querySelector("input");
  const media = drop.querySelector("img, audio");
  field.addEventListener("change", () => preview(field));
  // A file that the browser cannot show may still be one that the model can read.
  media.addEventListener("error", () => {
    if (!media.hasAttribute("src")) return;
    media.hidden = true;
    drop.querySelector(".choose").hidden = false;
  });
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (!event.dataTransfer.files.length) return;
    const one = new DataTransfer();
    one.items.add(event.dataTransfer.files[0]);
    field.files = one.files;
    preview(field);
  });
  drop.closest(".field").querySelector(".chosen button").addEventListener("click", () => {
    field.value = "";
    preview(field);
    field.focus();
  });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  predict();
});
form.addEventListener("reset", () => {
  setTimeout(() => {
    form.querySelectorAll("input[type=file]").forEach(preview);
    complain("");
    answer.classList.remove("old");
    used.textContent = "The answer appears here.";
    tasks.replaceChildren();
  });
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
