const element = (id) => document.getElementById(id);
const study = JSON.parse(element("study").textContent);
const criteria = Object.keys(study.criteria);
const ratings = new Ratings(study);
const viewer = new Viewer(element("images"), study.sets, showWindow);
const chosen = { criterion: 0, image: 0 };  // what a digit rates
let shownAt = 0;  // when the case came onto the screen

function pixels(view, position) {
  const text = atob(element(`pixels-${view.id}-${position}`).textContent);
  return new Uint16Array(Uint8Array.from(text, (character) => character.charCodeAt(0)).buffer);
}

function showCase() {
  const view = study.views[ratings.position];
  const images = Array.from({ length: study.sets }, (_, position) => pixels(view, position));
  viewer.load(images, view.width, view.height, view.white);
  Object.assign(chosen, { criterion: 0, image: 0 });
  shownAt = performance.now();
  element("end").hidden = true;
  element("work").hidden = false;
  scrollTo(0, 0);
  showRatings();
}

function showRatings() {
  const { values } = ratings.cases[ratings.position];
  for (const cell of document.querySelectorAll(".cell")) {
    const { criterion, image } = cell.dataset;
    const at = criteria.indexOf(criterion) === chosen.criterion && +image === chosen.image;
    cell.classList.toggle("chosen", at);
    for (const button of cell.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", values[criterion][image] === +button.textContent);
    }
  }
  const complete = ratings.complete(ratings.position);
  element("next").disabled = !complete;
  element("next").classList.toggle("ready", complete);
  element("previous").disabled = ratings.position === 0;
  element("count").textContent = `Case ${ratings.position + 1} of ${study.views.length}`;
  element("done").style.width = `${100 * ratings.done / study.views.length}%`;
  element("warning").textContent = ratings.problem;
  element("warning").hidden = !ratings.problem;
  viewer.mark(chosen.image);
}

function rate(criterion, image, value) {
  ratings.rate(criteria[criterion], image, value);
  const following = Math.min(criterion * study.sets + image + 1, criteria.length * study.sets - 1);
  chosen.criterion = Math.floor(following / study.sets);
  chosen.image = following % study.sets;
  showRatings();
}

function choose(rows, columns) {
  const clamp = (value, most) => Math.min(Math.max(value, 0), most);
  chosen.criterion = clamp(chosen.criterion + rows, criteria.length - 1);
  chosen.image = clamp(chosen.image + columns, study.sets - 1);
  showRatings();
}

/** Add the time since the case was shown to its own. */
function takeTime() {
  if (element("work").hidden) return;
  ratings.cases[ratings.position].seconds += (performance.now() - shownAt) / 1000;
  shownAt = performance.now();
}

function go(step) {
  const to = ratings.position + step;
  if (element("work").hidden || to < 0 || (step > 0 && !ratings.complete(ratings.position))) return;
  takeTime();
  if (to < study.views.length) {
    ratings.position = to;
    ratings.store();
    showCase();
  } else {
    ratings.store();
    element("work").hidden = true;
    element("end").hidden = false;
    element("text").value = ratings.file();
    element("save").focus();
  }
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([ratings.file()], { type: "application/json" }));
  link.download = `ratings_${study.name.replace(" ", "_")}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
}

function showWindow() {
  element("width").value = viewer.width;
  element("level").value = viewer.level;
}

function buildRatings() {
  for (const [row, name] of criteria.entries()) {
    const line = document.createElement("div");
    line.className = "criterion";
    const label = document.createElement("span");
    label.className = "name";
    label.textContent = name;
    label.title = study.criteria[name];
    line.append(label);
    for (let image = 0; image < study.sets; image++) {
      const cell = document.createElement("div");
      cell.className = "cell";
      cell.setAttribute("role", "group");
      cell.setAttribute("aria-label", `${name}, image ${letter(image)}`);
      Object.assign(cell.dataset, { criterion: name, image });
      const mark = document.createElement("span");
      mark.className = "letter";
      mark.textContent = letter(image);
      cell.append(mark);
      for (let value = 1; value <= study.highest; value++) {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = value;
        button.addEventListener("click", () => rate(row, image, value));
        cell.append(button);
      }
      line.append(cell);
    }
    element("ratings").append(line);
  }
}

function buildHelp() {
  element("how").textContent = study.rating === "rank"
    ? "Rank the images of each case by four criteria: 1 is the best image. Give equal ranks where " +
      "you see no difference."
    : `Score each image by four criteria, from 1 (worst) to ${study.highest} (best).`;
  for (const [name, meaning] of Object.entries(study.criteria)) {
    const term = document.createElement("dt");
    term.textContent = name;
    const text = document.createElement("dd");
    text.textContent = meaning;
    element("criteria").append(term, text);
  }
  element("highest").textContent = study.highest;
}

const KEYS = {
  n: () => go(1),
  p: () => go(-1),
  f: () => viewer.setWindow(1, 0.5),
  d: () => viewer.setWindow(0.25, 0.125),
  "[": () => viewer.setWindow(viewer.width / 1.15, viewer.level),
  "]": () => viewer.setWindow(viewer.width * 1.15, viewer.level),
  ",": () => viewer.setWindow(viewer.width, viewer.level - 0.02),
  ".": () => viewer.setWindow(viewer.width, viewer.level + 0.02),
  "+": () => viewer.zoomBy(1.25),
  "=": () => viewer.zoomBy(1.25),
  "-": () => viewer.zoomBy(0.8),
  0: () => viewer.fit(),
  "?": () => element("help").showModal(),
};
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function pressed(event) {
  const { key } = event;
  const elsewhere = element("help").open || element("work").hidden;
  if (elsewhere || event.ctrlKey || event.metaKey || event.altKey) return;
  if (key in ARROWS) {
    const [rows, columns] = ARROWS[key];
    if (event.target.type === "range") return;
    if (event.shiftKey) viewer.moveBy(-40 * columns, -40 * rows);
    else choose(rows, columns);
  } else if (key in KEYS) {
    KEYS[key]();
  } else if (/^[1-9]$/.test(key) && +key <= study.highest) {
    rate(chosen.criterion, chosen.image, +key);
  } else {
    return;
  }
  event.preventDefault();
}

document.documentElement.style.setProperty("--sets", study.sets);
element("reader").textContent = study.name;
buildRatings();
buildHelp();
showWindow();
for (const [id, key] of Object.entries({ full: "f", dark: "d", fit: 0, next: "n", previous: "p", "open-help": "?" })) {
  element(id).addEventListener("click", KEYS[key]);
}
for (const id of ["width", "level"]) {
  element(id).addEventListener("input", () =>
    viewer.setWindow(+element("width").value, +element("level").value));
}
element("close-help").addEventListener("click", () => element("help").close());
element("save").addEventListener("click", save);
element("back").addEventListener("click", showCase);
document.addEventListener("keydown", pressed);
document.addEventListener("visibilitychange", () => {
  // time in another tab does not count
  if (document.hidden) takeTime();
  else shownAt = performance.now();
});
showCase();
element("help").showModal();
