"use strict";
// What is shown, and drawing it: one pane for each run, or for each run and kind of image.

const NAMES = { target: "target", x: "phase encode along x", y: "phase encode along y", error: "error" };
const WINDOWS = { grey: [0, 1], error: [-0.1, 0.1], texture: [-3, 3] }; // full window of each scale

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

const labelOf = (s) => `${s.volume} slice ${s.slice_index} ${s.acquisition}`;
const SLICES = [...new Set(PAGE.runs.flatMap((run) => run.slices.map(labelOf)))];

const state = {
  slice: Math.floor(SLICES.length / 2), // position in SLICES; old epochs keep this and the first
  epoch: Infinity, // the newest one
  image: "x",
  texture: false,
  side: false,
  windows: structuredClone(WINDOWS),
  zoom: 1,
  center: [0.5, 0.5], // of the view, as a fraction of the image
  smooth: true,
  drag: "window",
  blink: null, // target, axis or epoch
  flipped: false, // whether the second image of the blinking pair is shown
  other: null, // the epoch to blink with
};

// Position of the selected slice in a run, -1 if it has no such slice.
function positionIn(run) {
  return run.slices.findIndex((s) => labelOf(s) === SLICES[state.slice]);
}

// Epochs of a run, or of all, that hold the selected slice.
function epochsOf(run) {
  const position = positionIn(run);
  return Object.keys(run.epochs)
    .map(Number)
    .filter((epoch) => run.epochs[epoch].images.includes(`x/${position}`))
    .sort((a, b) => a - b);
}

function allEpochs() {
  return [...new Set(PAGE.runs.flatMap(epochsOf))].sort((a, b) => a - b);
}

const epochName = (epoch) => (epoch === 0 ? "before stage 2" : `epoch ${epoch}`);

// The newest of some epochs that is not after the given one, or the first.
function nearest(epochs, epoch) {
  return epochs.filter((e) => e <= epoch).at(-1) ?? epochs[0];
}

// Epoch and image after blinking is taken into account.
function selection() {
  const reconstruction = ["x", "y"].includes(state.image) ? state.image : "x";
  const pairs = {
    target: [{ image: reconstruction }, { image: "target" }],
    axis: [{ image: "x" }, { image: "y" }],
    epoch: [{}, { epoch: state.other ?? allEpochs()[0] }],
  };
  const chosen = state.blink ? pairs[state.blink][Number(state.flipped)] : {};
  return { epoch: state.epoch, image: state.image, ...chosen };
}

function scaleOf(image) {
  return image === "error" ? "error" : state.texture ? "texture" : "grey";
}

// What a pane shows, in words and as an image; `missing` says why there is none.
function paneOf(number, image, epoch) {
  const run = PAGE.runs[number];
  const position = positionIn(run);
  const epochs = epochsOf(run);
  const pane = { number, image, scale: scaleOf(image), position };
  if (position < 0) return { ...pane, missing: "this run does not show this slice" };
  if (!epochs.length) return { ...pane, missing: "no reconstruction of this slice is kept" };
  pane.epoch = nearest(epochs, epoch);
  const kept = run.epochs[pane.epoch];
  pane.metrics = kept.metrics[position];
  if (image === "y" && !kept.images.includes(`y/${position}`)) {
    pane.missing = "not measurable along y: the scanner undersampled this volume";
  }
  pane.kind = pane.scale === "texture" ? `texture ${image}` : image;
  return pane;
}

function panes() {
  const { epoch, image } = selection();
  const images = state.side ? ["target", "x", "y", "error"] : [image];
  return PAGE.runs.flatMap((_, number) => images.map((kind) => paneOf(number, kind, epoch)));
}

function caption(pane) {
  const parts = [];
  if (PAGE.runs.length > 1) parts.push(PAGE.runs[pane.number].name);
  if (pane.image !== "target" && pane.epoch >= 0) parts.push(epochName(pane.epoch));
  parts.push(NAMES[pane.image] + (pane.scale === "texture" ? ", texture" : ""));
  const show = (name, key, digits, unit = "") => {
    const value = pane.metrics?.[key];
    return value == null ? "" : `${name} ${value.toFixed(digits)}${unit}`;
  };
  const banding = show("B", "banding", 2, " dB"); // of the pair; the others, of the image along x
  const metrics = { target: [], x: [show("SSIM", "ssim", 4), show("NMSE", "nmse", 4), banding], y: [banding] };
  const bold = element("b", parts.join(" · "));
  const rest = pane.missing ? [pane.missing] : (metrics[pane.image] ?? [errorScale()]);
  return [bold, ...rest.filter(Boolean).map((text) => element("span", text))];
}

// What black and white mean in an error.
function errorScale() {
  const [low, high] = state.windows.error.map((v) => `${v > 0 ? "+" : ""}${Number((100 * v).toPrecision(3))} %`);
  return `black ${low}, white ${high} of the volume's maximum`;
}

// --- drawing ---

const stage = document.getElementById("stage");
const narrow = matchMedia("(max-width: 760px)");
const grey = element("canvas"); // one image at its own size
let drawn = []; // { pane, image, figure }
let turn = 0; // of the newest call of draw

// Columns and height of panes that make the images as large as they can be.
function layout(count, aspect) {
  const width = stage.clientWidth;
  if (narrow.matches) {
    const columns = count > 1 ? 2 : 1;
    return { columns, height: width / columns / aspect };
  }
  const height = Math.max(300, innerHeight - 130);
  const best = { size: 0 };
  for (let columns = 1; columns <= count; columns++) {
    const rows = Math.ceil(count / columns);
    const tall = height / rows - 30;
    const size = Math.min(width / columns, tall * aspect);
    if (size > best.size) Object.assign(best, { size, columns, height: tall });
  }
  return best;
}

function figures(count) {
  while (stage.children.length < count) {
    const figure = element("figure");
    const canvas = element("canvas", "", "pane");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    figure.append(canvas, element("figcaption"));
    stage.append(figure);
  }
  while (stage.children.length > count) stage.lastChild.remove();
  return [...stage.children];
}

// Pixels of the canvas per pixel of the image, and where the image's corner lies.
function placement(canvas, image) {
  const fit = Math.min(canvas.width / image.width, canvas.height / image.height);
  const factor = fit * state.zoom;
  return {
    factor,
    left: canvas.width / 2 - state.center[0] * image.width * factor,
    top: canvas.height / 2 - state.center[1] * image.height * factor,
  };
}

function windowed({ width, height, values }, [low, high]) {
  const pixels = new ImageData(width, height);
  const words = new Uint32Array(pixels.data.buffer);
  const gain = 255 / (high - low);
  for (let i = 0; i < values.length; i++) {
    const level = Math.min(Math.max(Math.round((values[i] - low) * gain), 0), 255);
    words[i] = 0xff000000 | (level * 0x010101);
  }
  return pixels;
}

function paint({ pane, image, figure }) {
  const canvas = figure.firstChild;
  const context = canvas.getContext("2d");
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (!image) return;
  grey.width = image.width;
  grey.height = image.height;
  grey.getContext("2d").putImageData(windowed(image, state.windows[pane.scale]), 0, 0);
  const { factor, left, top } = placement(canvas, image);
  context.imageSmoothingEnabled = state.smooth;
  context.imageSmoothingQuality = "high";
  context.drawImage(grey, left, top, image.width * factor, image.height * factor);
}

async function draw() {
  const mine = ++turn;
  const shown = panes();
  const images = await Promise.all(
    shown.map((p) => (p.missing ? null : Images.get(p.number, p.epoch, p.kind, p.position))),
  );
  if (mine !== turn) return; // something newer is to be drawn
  const first = images.find(Boolean);
  const { columns, height } = layout(shown.length, first ? first.width / first.height : 1);
  stage.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  const ratio = devicePixelRatio;
  drawn = figures(shown.length).map((figure, i) => ({ pane: shown[i], image: images[i], figure }));
  for (const one of drawn) {
    const [canvas, words] = one.figure.children;
    canvas.style.height = `${Math.floor(height)}px`;
    const size = [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round);
    if (canvas.width !== size[0]) canvas.width = size[0];
    if (canvas.height !== size[1]) canvas.height = size[1];
    canvas.classList.toggle("pan", state.drag === "pan");
    words.replaceChildren(...caption(one.pane));
    canvas.setAttribute("aria-label", words.textContent);
    paint(one);
  }
}
