// All heads as small maps: one canvas, and two frames above it.

const SORTS = [
  ["layer", "layer"], ["sink", "sink score"], ["output", "least output"],
  ["token", "attention on the chosen token"],
];
const CELL = { least: 24, most: 60, gap: 4, bar: 4, caption: 13, gutter: 24 };

class Grid {
  constructor(maps, store, theme, tip, say) {
    Object.assign(this, { maps, store, theme, tip, say });
    this.box = byId("grid");
    this.canvas = byId("grid-canvas");
    this.small = document.createElement("canvas");
    const at = (event) => this.cellAt(event);
    this.canvas.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse") this.hover(at(event), event);
    });
    this.canvas.addEventListener("pointerleave", () => this.hover(null));
    this.canvas.addEventListener("click", (event) => {
      const cell = at(event);
      if (cell !== null) this.open(cell, true);
    });
    byId("sort").addEventListener("change", (event) => {
      const sort = event.target.value;
      const { token } = store.state;
      // The first token is what one asks for who has chosen none.
      store.set({ sort, token: sort === "token" ? token ?? 0 : token });
    });
    for (const [value, label] of SORTS) {
      byId("sort").append(element("option", { value }, label));
    }
    new ResizeObserver(() => {
      if (this.box.clientWidth !== this.width) this.draw();
    }).observe(this.box);
  }

  // Layers and heads that the map has, cells in order, and how they are laid.
  get heads() {
    return this.store.state.kind === "jacobian" ? 1 : this.maps.heads;
  }

  arranged() {
    const { kind, sort, token } = this.store.state;
    const count = this.maps.layers * this.heads;
    const order = Array.from({ length: count }, (_, i) => i);
    if (kind === "jacobian") return { order, values: null };
    const name = sort === "layer" ? "sink" : sort;
    const [view] = this.store.views();
    const values = this.maps.measureIn(name, view, token);
    if (sort !== "layer") {
      const size = view === "difference" ? Math.abs : (x) => x;
      const up = sort === "output" && view !== "difference" ? 1 : -1;
      order.sort((a, b) => up * (size(values[a]) - size(values[b])) || a - b);
    }
    return { order, values };
  }

  layOut() {
    const { kind, sort } = this.store.state;
    const table = kind !== "jacobian" && sort === "layer";
    // Without its scroll bar, so that this does not come and go.
    this.width = this.box.clientWidth;
    const room = this.width - 10 - (table ? CELL.gutter : 0);
    const columns = table ? this.heads
      : Math.max(1, Math.min(12, Math.floor(room / (CELL.least + 20))));
    const cell = Math.max(
      CELL.least, Math.min(CELL.most, Math.floor(room / columns)));
    const two = this.store.views().length === 2;
    const image = two ? Math.floor((cell - CELL.gap - 2) / 2) : cell - CELL.gap;
    const caption = table ? 0 : CELL.caption;
    const height = image + CELL.gap + CELL.bar + 1 + caption;
    this.plan = {
      table, columns, cell, image, height, two,
      left: 6 + (table ? CELL.gutter : 0), top: table ? 20 : 6,
      rows: Math.ceil(this.order.length / columns),
    };
  }

  corner(at) {
    const { columns, cell, height, left, top } = this.plan;
    return [left + (at % columns) * cell, top + Math.floor(at / columns) * height];
  }

  draw() {
    const { store, maps } = this, { kind, sort, token } = store.state;
    this.small.width = this.small.height = maps.length;
    Object.assign(this, this.arranged());
    this.layOut();
    const { columns, cell, height, left, top, rows, table } = this.plan;
    const width = left + columns * cell + 4, whole = top + rows * height + 4;
    const pixels = Math.min(2, devicePixelRatio || 1), { canvas } = this;
    canvas.width = width * pixels;
    canvas.height = whole * pixels;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${whole}px`;
    const pen = canvas.getContext("2d");
    pen.scale(pixels, pixels);
    pen.font = "10.5px system-ui, sans-serif";
    if (table) this.labels(pen);
    // Shares of attention are shares of the bar; outputs have no such whole.
    let most = sort === "output" ? 0 : 1;
    for (const x of this.values ?? []) most = Math.max(most, Math.abs(x));
    const ink = Object.fromEntries(["rule", "link", "muted"].map(
      (name) => [name, this.color(`--${name}`)]));
    this.order.forEach((cellAt, i) => this.drawCell(pen, cellAt, i, most, ink));
    byId("sort").value = sort;
    byId("sorting").hidden = kind === "jacobian";
    const chosen = byId("sort").options[SORTS.length - 1];
    chosen.textContent = token === null ? SORTS[3][1]
      : `attention on token ${token}`;
    byId("grid-title").textContent = kind === "jacobian"
      ? "Jacobian after each layer" : `${this.order.length} heads`;
    byId("grid-caption").textContent = this.caption(sort);
    this.box.setAttribute("aria-label", byId("grid-title").textContent);
    this.drawOpen();
  }

  caption(sort) {
    const { kind, view } = this.store.state;
    const two = this.plan.two
      ? " Left as it is, right edited." : "";
    if (kind === "jacobian") {
      return "From the embedding to the residual stream after each layer."
        + two;
    }
    const name = {
      sink: "mean attention on the first token",
      layer: "mean attention on the first token",
      output: "norm of what the head writes, over that of the stream",
      token: "mean attention on the chosen token",
    }[sort];
    const where = this.plan.table ? "A row is a layer." : "Layer.head.";
    const change = view === "difference" ? "change of the " : "";
    return `${where} Bar: ${change}${name}.${two}`;
  }

  labels(pen) {
    const { left, top, cell, height, image, columns, rows } = this.plan;
    pen.fillStyle = this.color("--muted");
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    for (let head = 0; head < columns; head++) {
      pen.fillText(head, left + head * cell + (cell - CELL.gap) / 2, 11);
    }
    pen.textAlign = "right";
    for (let layer = 0; layer < rows; layer++) {
      pen.fillText(layer, left - 5, top + layer * height + image / 2);
    }
  }

  color(name) {
    // A custom property keeps its text: an element must resolve it.
    this.probe ??= document.body.appendChild(
      element("i", { hidden: "", "aria-hidden": "true" }));
    this.probe.style.color = `var(${name})`;
    return getComputedStyle(this.probe).color;
  }

  drawCell(pen, cellAt, i, most, ink) {
    const { store, maps, heads } = this, [x, y] = this.corner(i);
    const { image, cell, table } = this.plan;
    const layer = Math.floor(cellAt / heads), head = cellAt % heads;
    const what = { ...store.what(), layer, head };
    store.views().forEach((view, n) => {
      const map = maps.of(what, view);
      paint(this.small, map, maps.scale(what, view), this.theme());
      const at = x + n * (image + 2);
      pen.imageSmoothingEnabled = maps.length > image;
      pen.imageSmoothingQuality = "high";
      pen.drawImage(this.small, at, y, image, image);
    });
    const wide = cell - CELL.gap;
    if (this.values) {
      const share = most ? Math.abs(this.values[cellAt]) / most : 0;
      pen.fillStyle = ink.rule;
      pen.fillRect(x, y + image + 2, wide, CELL.bar - 1);
      pen.fillStyle = ink.link;
      pen.fillRect(x, y + image + 2, wide * share, CELL.bar - 1);
    }
    if (table) return;
    pen.fillStyle = ink.muted;
    pen.textAlign = "center";
    pen.textBaseline = "alphabetic";
    const name = store.state.kind === "jacobian" ? layer : `${layer}.${head}`;
    pen.fillText(name, x + wide / 2, y + image + CELL.bar + 12);
  }

  cellAt(event) {
    const { left, top, cell, height, columns } = this.plan;
    const column = Math.floor((event.offsetX - left) / cell);
    const row = Math.floor((event.offsetY - top) / height);
    const at = row * columns + column;
    const inside = column >= 0 && column < columns && row >= 0;
    return inside && at < this.order.length ? this.order[at] : null;
  }

  frame(id, cellAt) {
    const mark = byId(id), at = this.order.indexOf(cellAt);
    mark.hidden = at < 0;
    if (at < 0) return;
    const [x, y] = this.corner(at), { image, cell } = this.plan;
    mark.style.transform = `translate(${x - 3}px, ${y - 3}px)`;
    mark.style.width = `${cell - CELL.gap + 6}px`;
    mark.style.height = `${image + 6}px`;
  }

  hover(cellAt, event) {
    this.frame("grid-hover", cellAt);
    this.tip(cellAt === null ? null : this.named(cellAt), event);
  }

  named(cellAt) {
    const { maps, heads, store } = this, layer = Math.floor(cellAt / heads);
    if (store.state.kind === "jacobian") return `after layer ${layer}`;
    const each = maps.conditions.map((one) => number(
      Math.round(1e3 * one.arrays.scores.data[cellAt]) / 1e3));
    return `layer ${layer}, head ${cellAt % heads}: sink score `
      + each.join(" → ");
  }

  get opened() {
    const { layer, head } = this.store.state;
    return layer === null ? null : layer * this.heads + head;
  }

  open(cellAt, scroll = false) {
    const { heads } = this;
    this.store.set(
      { layer: Math.floor(cellAt / heads), head: cellAt % heads });
    this.say(this.named(cellAt));
    if (!scroll) return;
    // On a phone the map is above the grid, perhaps out of sight.
    const { top } = byId("head").getBoundingClientRect();
    if (top < -80) byId("head").scrollIntoView({ block: "start" });
  }

  // Opens the next head by some cells and lines, in the order that is seen.
  move(cells, lines = 0) {
    const at = this.order.indexOf(this.opened);
    const next = at < 0 ? 0 : at + cells + lines * this.plan.columns;
    if (next < 0 || next >= this.order.length) return;
    this.open(this.order[next]);
  }

  drawOpen() {
    this.frame("grid-open", this.opened);
    const at = this.order.indexOf(this.opened);
    if (at < 0 || this.box.scrollHeight <= this.box.clientHeight) return;
    const [, y] = this.corner(at), { scrollTop, clientHeight } = this.box;
    const { height } = this.plan;
    if (y < scrollTop || y + height > scrollTop + clientHeight) {
      this.box.scrollTop = y - clientHeight / 2;
    }
  }
}

// A triangle on a canvas of one pixel a cell; the future stays clear.
function paint(canvas, map, scale, theme) {
  const length = canvas.width, pen = canvas.getContext("2d");
  const image = pen.createImageData(length, length), { data } = image;
  const colors = TABLES[theme][scale.signed ? "signed" : "sequential"];
  for (let t = 0, i = 0; t < length; t++) {
    for (let s = 0; s <= t; s++, i++) {
      const from = 3 * Math.round(255 * scale.of(map[i]));
      const to = 4 * (t * length + s);
      data[to] = colors[from];
      data[to + 1] = colors[from + 1];
      data[to + 2] = colors[from + 2];
      data[to + 3] = 255;
    }
  }
  pen.putImageData(image, 0, 0);
}
