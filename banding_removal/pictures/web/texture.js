"use strict";
// The low-signal view, as low_signal_view.py computes and explains it; the constants come from there.

function gaussianBlur(image, height, width, sigma) {
  const radius = Math.ceil(3 * sigma);
  const weights = [];
  for (let i = -radius; i <= radius; i++) weights.push(Math.exp((-i * i) / (2 * sigma * sigma)));
  const sum = weights.reduce((a, b) => a + b);

  // Along one axis; the border is repeated.
  function along(source, length, step, lines, lineStep) {
    const out = new Float64Array(source.length);
    for (let line = 0; line < lines; line++) {
      for (let i = 0; i < length; i++) {
        let total = 0;
        for (let k = -radius; k <= radius; k++) {
          const j = Math.min(Math.max(i + k, 0), length - 1);
          total += weights[k + radius] * source[line * lineStep + j * step];
        }
        out[line * lineStep + i * step] = total / sum;
      }
    }
    return out;
  }
  return along(along(image, width, 1, height, width), height, width, width, 1);
}

function percentileOf(values, percent) {
  const ordered = Float64Array.from(values).sort();
  const place = (percent / 100) * (ordered.length - 1);
  const below = Math.floor(place);
  const above = Math.min(below + 1, ordered.length - 1);
  return ordered[below] + (place - below) * (ordered[above] - ordered[below]);
}

function lowSignalView(image, height, width, c) {
  const blur = (values, sigma) => gaussianBlur(values, height, width, sigma);
  const q = percentileOf(image, c.percentile);
  const unit = q > 0 ? q : 1;
  const blurred = blur(image, c.blur);
  const weight = blurred.map((v) => 1 / (1 + Math.exp((v / unit - c.lowSignal) / c.limitWidth)));
  const energy = blur(
    weight.map((w, i) => w * ((image[i] - blurred[i]) / unit) ** 2),
    c.levelBlur,
  );
  const share = blur(weight, c.levelBlur);
  return Float32Array.from(weight, (w, i) => {
    const level = Math.sqrt(Math.max(energy[i] / (share[i] + c.leastWeight), 0)) + c.leastLevel;
    return (w * (image[i] - blurred[i])) / (unit * level);
  });
}
