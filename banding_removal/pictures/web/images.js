"use strict";
// The images in the page: base64, inflated, the prediction from the neighbours undone. What is
// encoded, and why, is in kept_slices.py.

const PAGE = JSON.parse(document.getElementById("page").textContent);

const Images = (() => {
  const MOST = 160; // decoded images that are kept
  const cache = new Map(); // id -> promise of an image; the oldest first

  async function inflate(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function counts(planes, height, width) {
    const size = height * width;
    const out = new Uint16Array(size);
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const folded = planes[i] | (planes[size + i] << 8);
        const residual = (folded >> 1) ^ -(folded & 1);
        const left = x ? out[i - 1] : 0;
        const above = y ? out[i - width] : 0;
        out[i] = residual + ((left + above) >> 1); // modulo 2^16
      }
    }
    return out;
  }

  async function decode(id, { shape: [height, width], step, data_range: range }) {
    const planes = await inflate(document.getElementById(id).textContent);
    const values = Float32Array.from(counts(planes, height, width), (n) => (n * step) / (range || 1));
    return { width, height, values }; // in the unit of the volume's maximum
  }

  async function derived(run, epoch, kind, slice) {
    if (kind === "error") {
      const [image, target] = await Promise.all([
        get(run, epoch, "x", slice),
        get(run, epoch, "target", slice),
      ]);
      return { ...image, values: image.values.map((v, i) => v - target.values[i]) };
    }
    const image = await get(run, epoch, kind.slice("texture ".length), slice);
    const values = lowSignalView(image.values, image.height, image.width, PAGE.texture);
    return { ...image, values };
  }

  function idOf(run, epoch, kind, slice) {
    return `${run}/${kind.endsWith("target") ? 0 : epoch}/${kind}/${slice}`;
  }

  // An image by kind: target, x, y, error, or "texture x" and so on.
  function get(run, epoch, kind, slice) {
    const id = idOf(run, epoch, kind, slice);
    const stored = ["target", "x", "y"].includes(kind);
    const found =
      cache.get(id) ??
      (stored ? decode(id, PAGE.runs[run].slices[slice]) : derived(run, epoch, kind, slice));
    cache.delete(id);
    cache.set(id, found);
    if (cache.size > MOST) cache.delete(cache.keys().next().value);
    return found;
  }

  return { get };
})();
