"use strict";

/** Shows 16-bit images side by side, with one window, zoom and position for all. */
class Viewer {
  /**
   * @param {HTMLElement} parent where the images are put
   * @param {number} count number of images
   * @param {() => void} onWindow called when the window changes
   */
  constructor(parent, count, onWindow) {
    this.onWindow = onWindow;
    this.width = 1;  // of the window, as a fraction of the case's white
    this.level = 0.5;  // its middle
    this.pointers = new Map();
    this.panels = [];
    for (let i = 0; i < count; i++) {
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      caption.textContent = letter(i);
      const canvas = document.createElement("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Image ${letter(i)}`);
      figure.append(canvas, caption);
      parent.append(figure);
      this.panels.push({ figure, canvas, source: document.createElement("canvas") });
      this.listen(canvas);
    }
    new ResizeObserver(() => this.redraw(false)).observe(parent);
    this.fit();
  }

  /** Show the images (Uint16Array each) of a case. */
  load(images, width, height, white) {
    this.size = [width, height];
    this.white = white;
    this.panels.forEach((panel, i) => {
      panel.grey = images[i];
      panel.source.width = width;
      panel.source.height = height;
    });
    this.fit();
    this.redraw(true);
  }

  setWindow(width, level) {
    this.width = Math.min(Math.max(width, 0.02), 2);
    this.level = Math.min(Math.max(level, 0), 1.5);
    this.redraw(true);
    this.onWindow();
  }

  fit() {
    this.zoom = 1;
    this.centre = [0.5, 0.5];  // of the view, as a fraction of the image
    this.redraw(false);
  }

  /** Zoom by a factor; the point of the image at (x, y), in pixels from a canvas's centre, stays. */
  zoomBy(factor, x = 0, y = 0) {
    const zoom = Math.min(Math.max(this.zoom * factor, 1), 20);
    const change = 1 / (this.zoom * this.unit()) - 1 / (zoom * this.unit());
    this.zoom = zoom;
    this.move(-x * change, -y * change);
  }

  /** Move the images by pixels of the screen. */
  moveBy(x, y) {
    this.move(x / (this.zoom * this.unit()), y / (this.zoom * this.unit()));
  }

  move(x, y) {
    if (!this.size) return;
    this.centre = [this.centre[0] - x / this.size[0], this.centre[1] - y / this.size[1]]
      .map((part) => Math.min(Math.max(part, 0), 1));
    this.redraw(false);
  }

  /** Pixels of the screen for one of the image, at zoom 1. */
  unit() {
    const { clientWidth, clientHeight } = this.panels[0].canvas;
    return Math.min(clientWidth / this.size[0], clientHeight / this.size[1]);
  }

  redraw(windowed) {
    this.stale ||= windowed;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      if (!this.size) return;
      for (const panel of this.panels) {
        if (this.stale) this.applyWindow(panel);
        this.draw(panel);
      }
      this.stale = false;
    });
  }

  /** From 16 bits to the 8 of the screen: only here, so that a narrow window shows no steps. */
  applyWindow(panel) {
    const pixels = new ImageData(...this.size);
    const black = (this.level - this.width / 2) * this.white;
    const gain = 255 / (this.width * this.white);
    const packed = new Uint32Array(pixels.data.buffer);
    for (let i = 0; i < packed.length; i++) {
      const grey = Math.min(Math.max(Math.round((panel.grey[i] - black) * gain), 0), 255);
      packed[i] = 0xff000000 | (grey * 0x10101);
    }
    panel.source.getContext("2d").putImageData(pixels, 0, 0);
  }

  draw({ canvas, source }) {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    const context = canvas.getContext("2d");
    const scale = this.unit() * this.zoom * ratio;
    context.setTransform(
      scale, 0, 0, scale,
      canvas.width / 2 - this.centre[0] * this.size[0] * scale,
      canvas.height / 2 - this.centre[1] * this.size[1] * scale,
    );
    // Without smoothing, pixels of unequal width would look like streaks.
    context.imageSmoothingQuality = "high";
    context.drawImage(source, 0, 0);
  }

  listen(canvas) {
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = canvas.getBoundingClientRect();
      const x = event.clientX - box.left - box.width / 2;
      const y = event.clientY - box.top - box.height / 2;
      this.zoomBy(Math.exp(-event.deltaY / 500), x, y);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
    canvas.addEventListener("pointermove", (event) => this.drag(event));
  }

  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const x = event.clientX - before[0], y = event.clientY - before[1];
    const spread = this.spread();
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (this.pointers.size > 1) {
      if (spread) this.zoomBy(this.spread() / spread);
      this.moveBy(x / this.pointers.size, y / this.pointers.size);
    } else if (event.shiftKey || event.buttons === 2) {
      this.setWindow(this.width * Math.exp(x / 200), this.level + y * this.width / 300);
    } else {
      this.moveBy(x, y);
    }
  }

  /** Distance between two fingers. */
  spread() {
    const [first, second] = [...this.pointers.values()];
    return second ? Math.hypot(first[0] - second[0], first[1] - second[1]) : 0;
  }

  mark(chosen) {
    this.panels.forEach(({ figure }, i) => figure.classList.toggle("chosen", i === chosen));
  }
}

/** The name of an image by its position: A, B, C, D. */
function letter(position) {
  return String.fromCharCode(65 + position);
}
