// One map, large: tokens on both axes, norms beside it, and the pointer.

// Pixels: of the norms beside a map, the least cell that has a label, an
// enlarged cell, text; characters of a label; the least side of a map that has
// room for words in its empty half.
const CANVAS = {
  bars: 26, least: 8, large: 15, font: 12, label: 12, roomy: 460,
};

class LargeMap {
  // `view` as `Maps.of` takes it; `large` says whether cells are enlarged.
  constructor(page, maps, store, theme, grid, view, large) {
    Object.assign(this, { page, maps, store, theme, grid, view, large });
    this.base = element("canvas", { "aria-hidden": "true" });
    this.over = element("canvas", {
      class: "over", tabindex: "0", role: "application",
      "aria-roledescription": "map of tokens",
    });
    this.heading = element("h3");
    this.scroller = element("div", { class: "canvases" }, this.base, this.over);
    this.box = element("div", { class: "map" }, this.heading, this.scroller);
    this.small = document.createElement("canvas");
    this.small.width = this.small.height = maps.length;
    this.listen();
  }

  listen() {
    const { over, store } = this;
    over.addEventListener("pointermove", (event) => {
      const pair = this.pairAt(event);
      const before = store.state.pointed?.pair ?? null;
      if (String(pair) === String(before) && pair !== null) {
        this.grid.tip(this.tip(pair), event);
        return;
      }
      store.set({ pointed: pair && { pair } });
      this.grid.tip(pair && this.tip(pair), event);
    });
    over.addEventListener("pointerleave", () => {
      store.set({ pointed: null });
      this.grid.tip(null);
    });
    over.addEventListener("click", (event) => {
      const pair = this.pairAt(event);
      if (!pair) return;
      const same = String(pair) === String(store.state.pair);
      store.set({ pair: same ? null : pair });
    });
    over.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const step = {
      ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
    }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    const last = this.maps.length - 1;
    const [t, s] = this.store.state.pair ?? [last, 0];
    const row = Math.min(last, Math.max(0, t + step[0]));
    this.store.set(
      { pair: [row, Math.min(row, Math.max(0, s + step[1]))], pointed: null });
    this.grid.say(byId("readout").textContent);
  }

  get what() { return this.store.what(); }

  // Norms are beside one head's attention of one condition.
  get beside() {
    return this.what.kind === "attention" && this.what.layer !== null
      && this.view !== "difference";
  }

  layOut() {
    const { length } = this.maps, pen = this.base.getContext("2d");
    const wide = this.scroller.clientWidth || 320;
    const bars = this.beside ? CANVAS.bars : 4;
    const most = wide < 430 ? 8 : CANVAS.label;
    this.texts = this.page.tokens.map(({ text }) => short(text, most));
    pen.font = this.font(CANVAS.font, 700); // as those that are lit
    const widest = Math.max(
      ...this.texts.map((text) => pen.measureText(text).width));
    const gutter = Math.ceil(Math.min(widest, wide < 430 ? 50 : 92)) + 10;
    let cell = (wide - gutter - bars - 6) / length;
    // No larger than the window is high, nor than is of use.
    const high = Math.max(300, innerHeight - bars - gutter - 70) / length;
    cell = Math.min(cell, Math.max(high, 8), 40);
    if (this.large()) cell = Math.max(cell, CANVAS.large);
    else if (cell > 3) cell = Math.floor(cell * 4) / 4;
    this.plan = { cell, gutter, top: bars + 2, bars, left: gutter };
    this.plan.side = cell * length;
    this.plan.width = Math.ceil(gutter + this.plan.side + bars + 4);
    this.plan.height = Math.ceil(this.plan.top + this.plan.side + gutter);
  }

  font(size, weight = 400) {
    return `${weight} ${size}px system-ui, -apple-system, "Segoe UI", Roboto, `
      + '"Liberation Sans", "DejaVu Sans", sans-serif';
  }

  sized(canvas) {
    const pixels = Math.min(3, devicePixelRatio || 1);
    const { width, height } = this.plan;
    canvas.width = width * pixels;
    canvas.height = height * pixels;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.setTransform(pixels, 0, 0, pixels, 0, 0);
    return pen;
  }

  draw() {
    this.map = this.maps.of(this.what, this.view);
    this.scale = this.maps.scale(this.what, this.view);
    this.layOut();
    const { left, top, side } = this.plan;
    const pen = this.sized(this.base);
    paint(this.small, this.map, this.scale, this.theme());
    pen.imageSmoothingEnabled = false;
    pen.drawImage(this.small, left, top, side, side);
    this.axes(pen);
    if (this.beside) this.norms(pen);
    const name = this.view === "difference" ? "Difference"
      : this.maps.conditions[this.view].name;
    this.heading.textContent = name;
    this.heading.hidden = this.store.views().length < 2;
    this.over.setAttribute(
      "aria-label", `${byId("head-title").textContent}, ${name}: queries by `
      + "keys; arrow keys choose a pair of tokens");
    this.drawOver();
  }

  // Every label where there is room; else sinks and some.
  labelled() {
    const { length } = this.maps, { cell } = this.plan;
    if (cell >= CANVAS.least) return this.texts.map(() => true);
    const step = Math.ceil(14 / cell), out = this.texts.map(() => false);
    const condition = this.view === 1 ? 1 : 0, near = (i) => out.slice(
      Math.max(0, i - step + 1), i + step).some((x) => x);
    for (let i = 0; i < length; i++) {
      if (this.maps.sinkAt(condition, i) && !near(i)) out[i] = true;
    }
    for (let i = 0; i < length; i += step) if (!near(i)) out[i] = true;
    return out;
  }

  label(pen, i, axis, weight = 400) {
    const { left, top, cell, side, gutter } = this.plan;
    const middle = (i + 0.5) * cell;
    pen.save();
    pen.font = this.font(
      Math.min(CANVAS.font, Math.max(9, cell)), weight);
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    if (axis === "query") pen.translate(left - 5, top + middle);
    else {
      pen.translate(left + middle, top + side + 5);
      pen.rotate(-Math.PI / 2);
    }
    pen.fillText(this.texts[i], 0, 0.5, gutter - 7);
    pen.restore();
  }

  axes(pen) {
    const seen = this.labelled(), condition = this.view === 1 ? 1 : 0;
    const ink = this.grid.color("--ink"), sink = this.grid.color("--sink");
    const muted = this.grid.color("--muted");
    seen.forEach((is, i) => {
      if (!is) return;
      const found = this.maps.sinkAt(condition, i);
      pen.fillStyle = found ? sink : this.plan.cell < CANVAS.least ? muted : ink;
      for (const axis of ["query", "key"]) {
        this.label(pen, i, axis, found ? 700 : 400);
      }
    });
  }

  norms(pen) {
    const { layer, head } = this.what, { left, top, cell, side, bars } = this.plan;
    const { length } = this.maps, room = bars - 6;
    const thin = cell > 4 ? 1 : 0;
    const values = this.maps.valueNorms(this.view, layer, head);
    const outputs = this.maps.outputNorms(this.view, layer, head);
    const most = [values, outputs].map((x) => Math.max(...x) || 1);
    pen.fillStyle = this.grid.color("--muted");
    for (let i = 0; i < length; i++) {
      const up = (room * values[i]) / most[0];
      pen.fillRect(left + i * cell, top - 3 - up, cell - thin, up);
      const along = (room * outputs[i]) / most[1];
      pen.fillRect(left + side + 3, top + i * cell, along, cell - thin);
    }
  }

  drawOver() {
    const pen = this.sized(this.over), pair = this.store.lastPair();
    const lit = this.store.lit(), { left, top, cell, side } = this.plan;
    const ink = this.grid.color("--ink"), card = this.grid.color("--card");
    const link = this.grid.color("--link");
    const band = (i, color) => {
      pen.strokeStyle = color;
      pen.lineWidth = 1.25;
      const at = i * cell;
      // Keys end where the future begins, queries begin there.
      pen.strokeRect(left, top + at, at + cell, cell);
      pen.strokeRect(left + at, top + at, cell, side - at);
    };
    const name = (i, axis, color) => {
      const { gutter } = this.plan, half = Math.max(cell, 12) / 2;
      pen.fillStyle = card;
      const middle = (i + 0.5) * cell;
      if (axis === "query") {
        pen.fillRect(0, top + middle - half, gutter - 2, 2 * half);
      } else {
        pen.fillRect(left + middle - half, top + side + 2, 2 * half, gutter);
      }
      pen.fillStyle = color;
      this.label(pen, i, axis, 700);
    };
    if (lit !== null && lit !== undefined) {
      band(lit, link);
      name(lit, "query", link);
      name(lit, "key", link);
    }
    if (!pair) return;
    const [t, s] = pair, x = left + s * cell, y = top + t * cell;
    pen.strokeStyle = ink;
    pen.globalAlpha = 0.45;
    pen.strokeRect(left, y, x - left, cell);
    pen.strokeRect(x, y + cell, cell, top + side - y - cell);
    pen.globalAlpha = 1;
    pen.lineWidth = 2;
    pen.strokeRect(x - 1, y - 1, cell + 2, cell + 2);
    name(t, "query", ink);
    name(s, "key", ink);
  }

  pairAt(event) {
    const { left, top, cell } = this.plan, { length } = this.maps;
    const s = Math.floor((event.offsetX - left) / cell);
    const t = Math.floor((event.offsetY - top) / cell);
    return t >= 0 && t < length && s >= 0 && s <= t ? [t, s] : null;
  }

  tip([t, s]) {
    return this.scale.label(this.map[place(t, s)]);
  }
}
