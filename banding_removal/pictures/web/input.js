"use strict";
// Controls, keyboard and mouse; the place in the page's address, so that a reload keeps it.

const $ = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const KEPT = ["slice", "epoch", "image", "texture", "side", "windows", "zoom", "center", "smooth", "drag", "other"];
const TITLES = { target: "target", axis: "x / y", epoch: "epochs" };
let player = null;
let blinker = null;
let lastBlink = "target";
let saving = null;

function update(changes = {}) {
  Object.assign(state, changes);
  const epochs = allEpochs();
  if (epochs.length) state.epoch = nearest(epochs, state.epoch);
  for (const [id, on] of Object.entries({
    texture: state.texture, side: state.side, smooth: state.smooth, play: player !== null,
    low: state.windows.grey[1] - state.windows.grey[0] <= PAGE.runs[0].window,
  })) $(id).setAttribute("aria-pressed", on);
  for (const name of ["image", "blink", "drag"]) {
    for (const button of document.querySelectorAll(`[data-${name}]`)) {
      button.setAttribute("aria-pressed", button.dataset[name] === state[name]);
    }
  }
  $("slice").value = state.slice;
  $("epoch").max = Math.max(0, epochs.length - 1);
  $("epoch").value = epochs.indexOf(state.epoch);
  const name = epochs.length ? epochName(state.epoch) : "";
  $("epoch").setAttribute("aria-valuetext", name);
  $("epoch-text").textContent = name;
  if (Array.from($("other"), (option) => option.value).join() !== epochs.join()) {
    $("other").replaceChildren(...epochs.map((epoch) => new Option(epoch || "before", epoch)));
  }
  $("other").value = nearest(epochs, state.other ?? epochs[0]);
  const [low, high] = state.windows[scaleNow()];
  const [least, most] = WINDOWS[scaleNow()];
  $("width").value = Math.sqrt((high - low) / (most - least));
  $("level").value = ((low + high) / 2 - least) / (most - least);
  readOut();
  draw();
  markEpoch(state.epoch);
  clearTimeout(saving);
  saving = setTimeout(() => {
    const place = Object.fromEntries(KEPT.map((key) => [key, state[key]]));
    history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(place))}`);
  }, 300);
}

function restore() {
  try {
    const place = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    for (const key of KEPT) if (place[key] != null) state[key] = place[key];
    state.slice = clamp(state.slice, 0, SLICES.length - 1);
  } catch {
    return; // no place, or a link to a section
  }
}

const scaleNow = () => scaleOf(selection().image);

function stepEpoch(by) {
  const epochs = allEpochs();
  update({ epoch: epochs[clamp(epochs.indexOf(state.epoch) + by, 0, epochs.length - 1)] });
}

function stepSlice(by) {
  update({ slice: clamp(state.slice + by, 0, SLICES.length - 1) });
}

function play() {
  if (player !== null) {
    clearInterval(player);
    player = null;
  } else {
    player = setInterval(() => {
      const epochs = allEpochs();
      update({ epoch: epochs[(epochs.indexOf(state.epoch) + 1) % epochs.length] });
    }, Number($("rate").value));
  }
  update();
}

function blink(pair) {
  clearInterval(blinker);
  const on = pair !== null && state.blink !== pair;
  if (on) {
    lastBlink = pair;
    blinker = setInterval(() => update({ flipped: !state.flipped }), Number($("rate").value));
  }
  update({ blink: on ? pair : null, flipped: false });
}

// Shows the other image of the pair, and stops there.
function flip() {
  clearInterval(blinker);
  update({ blink: lastBlink, flipped: state.blink !== null && !state.flipped ? true : !state.blink });
}

function setWindow(level, width) {
  const [least, most] = WINDOWS[scaleNow()];
  const range = most - least;
  width = clamp(width, range * 2e-3, range * 4);
  level = clamp(level, least - range, most + range);
  update({ windows: { ...state.windows, [scaleNow()]: [level - width / 2, level + width / 2] } });
}

// The window made wider by a factor, and its level moved by a fraction of its width.
function changeWindow(factor, shift) {
  const [low, high] = state.windows[scaleNow()];
  setWindow((low + high) / 2 + shift * (high - low), (high - low) * factor);
}

function toggleLow() {
  const white = PAGE.runs[0].window;
  const low = state.windows.grey[1] - state.windows.grey[0] > white;
  update({ windows: { ...state.windows, grey: [0, low ? white : 1] } });
}

// Zoom about a point of the image, given as fractions of it, that stays where it is.
function zoomAbout(factor, [x, y] = state.center) {
  const zoom = clamp(state.zoom * factor, 1, 40);
  const keep = 1 - state.zoom / zoom;
  update({ zoom, center: moved((x - state.center[0]) * keep, (y - state.center[1]) * keep) });
}

function moved(x, y) {
  return [clamp(state.center[0] + x, 0, 1), clamp(state.center[1] + y, 0, 1)];
}

const fit = () => update({ zoom: 1, center: [0.5, 0.5] });

function mark() {
  update({ other: selection().epoch });
}

// --- keyboard ---

const KEYS = {
  ArrowLeft: () => stepEpoch(-1), ArrowRight: () => stepEpoch(1),
  ArrowUp: () => stepSlice(-1), ArrowDown: () => stepSlice(1),
  Home: () => update({ epoch: 0 }), End: () => update({ epoch: Infinity }),
  " ": play, b: flip, m: mark, f: () => update({ windows: structuredClone(WINDOWS) }), 0: fit,
  1: () => show("target"), 2: () => show("x"), 3: () => show("y"), 4: () => show("error"),
  t: () => update({ texture: !state.texture }), l: toggleLow,
  s: () => update({ side: !state.side }), i: () => update({ smooth: !state.smooth }),
  d: () => update({ drag: state.drag === "pan" ? "window" : "pan" }),
  q: () => blink("target"), w: () => blink("axis"), e: () => blink("epoch"),
  "[": () => changeWindow(1 / 1.15, 0), "]": () => changeWindow(1.15, 0),
  ",": () => changeWindow(1, -0.05), ".": () => changeWindow(1, 0.05),
  "+": () => zoomAbout(1.25), "=": () => zoomAbout(1.25), "-": () => zoomAbout(0.8),
};
const PANS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function show(image) {
  clearInterval(blinker);
  update({ image, blink: null, flipped: false });
}

addEventListener("keydown", (event) => {
  if (!SLICES.length || event.ctrlKey || event.metaKey || event.altKey) return;
  const { tagName } = event.target;
  const arrows = event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End";
  if (tagName === "SELECT" || (tagName === "INPUT" && arrows)) return; // they use these keys
  if (event.key === " " && ["BUTTON", "SUMMARY"].includes(tagName)) return;
  if (event.shiftKey && PANS[event.key]) {
    update({ center: moved(...PANS[event.key].map((v) => (0.08 * v) / state.zoom)) });
  } else {
    const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    action();
  }
  event.preventDefault();
});

// --- mouse and touch ---

const pointers = new Map(); // id -> last event

// Where an event is, as fractions of the image that its pane shows.
function place(event) {
  const one = drawn.find((candidate) => candidate.figure.contains(event.target));
  if (!one?.image) return null;
  const canvas = one.figure.firstChild;
  const { factor, left, top } = placement(canvas, one.image);
  const box = canvas.getBoundingClientRect();
  const at = (offset, start) => (offset * devicePixelRatio - start) / factor;
  const x = at(event.clientX - box.left, left);
  const y = at(event.clientY - box.top, top);
  return { one, x, y, factor: factor / devicePixelRatio, at: [x / one.image.width, y / one.image.height] };
}

// The window, and the value under the pointer.
function readOut(event) {
  const here = event && place(event);
  const x = Math.floor(here?.x);
  const y = Math.floor(here?.y);
  const [low, high] = state.windows[scaleNow()];
  const digits = (value) => value.toPrecision(3);
  let text = `window ${digits(high - low)}, level ${digits((low + high) / 2)}`;
  if (here && x >= 0 && y >= 0 && x < here.one.image.width && y < here.one.image.height) {
    const value = here.one.image.values[y * here.one.image.width + x];
    const unit = here.one.pane.scale === "texture" ? "local noise levels" : "of the volume's maximum";
    text += ` · x ${x}, y ${y}: ${value.toPrecision(4)} ${unit}`;
  }
  $("readout").textContent = text;
}

stage.addEventListener("pointerdown", (event) => {
  if (event.target.tagName !== "CANVAS") return;
  event.target.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, event);
});
stage.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  const here = before && place(event);
  if (here) {
    const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
    const size = [here.one.image.width, here.one.image.height].map((n) => n * here.factor);
    const pan = () => update({ center: moved(-dx / size[0], -dy / size[1]) });
    if (pointers.size > 1) {
      const [still] = [...pointers.values()].filter((p) => p.pointerId !== event.pointerId);
      const apart = (p) => Math.hypot(p.clientX - still.clientX, p.clientY - still.clientY);
      zoomAbout(apart(event) / Math.max(1, apart(before)), here.at);
    } else if (state.drag === "pan" || event.shiftKey || event.buttons & 6) {
      pan();
    } else {
      changeWindow(Math.exp(dx / 200), dy / 300);
    }
    pointers.set(event.pointerId, event);
  }
  readOut(event);
});
for (const name of ["pointerup", "pointercancel"]) {
  stage.addEventListener(name, (event) => pointers.delete(event.pointerId));
}
stage.addEventListener("contextmenu", (event) => event.preventDefault());
stage.addEventListener("dblclick", fit);
stage.addEventListener(
  "wheel",
  (event) => {
    const here = place(event);
    if (!here) return;
    event.preventDefault();
    zoomAbout(Math.exp(-event.deltaY / 400), here.at);
  },
  { passive: false },
);

// --- controls ---

function connect() {
  $("slice").replaceChildren(...SLICES.map((label, i) => new Option(label, i)));
  $("slice").addEventListener("change", () => update({ slice: Number($("slice").value) }));
  $("epoch").addEventListener("input", () => update({ epoch: allEpochs()[$("epoch").value] }));
  $("other").addEventListener("change", () => update({ other: Number($("other").value) }));
  $("rate").addEventListener("change", () => {
    if (player !== null) play(), play();
    if (state.blink) blink(null), blink(lastBlink);
  });
  const byWidth = () => {
    const [least, most] = WINDOWS[scaleNow()];
    const level = least + $("level").value * (most - least);
    setWindow(level, $("width").value ** 2 * (most - least));
  };
  for (const id of ["width", "level"]) $(id).addEventListener("input", byWidth);
  const clicks = {
    play, fit, low: toggleLow, texture: KEYS.t, side: KEYS.s, smooth: KEYS.i, full: KEYS.f,
    closer: KEYS["+"], farther: KEYS["-"],
  };
  for (const [id, action] of Object.entries(clicks)) $(id).addEventListener("click", action);
  const groups = { image: show, blink, drag: (drag) => update({ drag }) };
  for (const [name, action] of Object.entries(groups)) {
    for (const button of document.querySelectorAll(`[data-${name}]`)) {
      button.addEventListener("click", () => action(button.dataset[name]));
    }
  }
}
