const LARGEST = 12; // carriers of a pair that are listed

// The page: parts are made once and drawn again where what they show changed.

function radios(id, choices, chosen, pick) {
  byId(id).replaceChildren(...choices.map(([value, text]) => {
    const input = element("input", { type: "radio", name: id, value });
    input.checked = value === chosen;
    input.addEventListener("change", () => pick(value));
    return element("label", {}, input, element("span", {}, text));
  }));
}

function mark(id, value) {
  for (const input of byId(id).querySelectorAll("input")) {
    input.checked = input.value === value;
  }
}

// Light or dark: the system's, until one is chosen here.
class Theme {
  constructor(changed) {
    this.system = matchMedia("(prefers-color-scheme: dark)");
    try {
      this.chosen = localStorage.getItem("sinkjax-theme");
    } catch { /* a frame of a notebook may keep nothing */ }
    this.apply();
    this.system.addEventListener("change", () => {
      this.apply();
      changed();
    });
    this.changed = changed;
    byId("theme").addEventListener("click", () => this.toggle());
  }

  get name() {
    return this.chosen ?? (this.system.matches ? "dark" : "light");
  }

  apply() {
    if (this.chosen) document.documentElement.dataset.theme = this.chosen;
    byId("theme").setAttribute("aria-pressed", String(this.name === "dark"));
  }

  toggle() {
    this.chosen = this.name === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("sinkjax-theme", this.chosen);
    } catch { /* as above */ }
    this.apply();
    this.changed();
  }
}

class Page {
  constructor(page) {
    this.page = page;
    this.maps = new Maps(page);
    this.store = new Store(this.maps);
    this.theme = new Theme(() => this.drawAll());
    const theme = () => this.theme.name;
    const tip = (text, event) => this.tip(text, event);
    const say = (text) => { byId("said").textContent = text; };
    this.grid = new Grid(this.maps, this.store, theme, tip, say);
    this.strip = new Strip(page, this.maps, this.store, theme);
    this.enlarged = false;
    this.head();
    this.choices();
    this.footer();
    const help = () => byId("help").showModal();
    byId("ask").addEventListener("click", help);
    byId("keys").append(...KEYS.map(([key, text]) => element(
      "tr", {}, element("td", {}, ...key.split(" ").flatMap(
        (one) => [element("kbd", {}, one), " "])), element("td", {}, text))));
    listenToKeys({
      maps: this.maps, store: this.store, grid: this.grid, help,
      theme: () => this.theme.toggle(), larger: () => this.enlarge(),
    });
    this.store.listen((state, names) => this.draw(names));
    byId("main").hidden = false;
    this.drawAll();
    let width = innerWidth;
    addEventListener("resize", () => {
      if (innerWidth !== width) this.drawMaps();
      width = innerWidth;
    });
  }

  head() {
    byId("title").textContent = this.page.title;
    byId("subtitle").textContent = this.page.subtitle;
    byId("previous").addEventListener("click", () => this.grid.move(-1));
    byId("next").addEventListener("click", () => this.grid.move(1));
    byId("larger").addEventListener("click", () => this.enlarge());
    byId("close").addEventListener(
      "click", () => this.store.set({ layer: null, head: null }));
  }

  choices() {
    const { store, maps } = this;
    if (maps.hasJacobian) {
      radios("choose-map", [["attention", "Attention"],
        ["jacobian", "Jacobian"]], store.state.kind,
      (kind) => kind !== store.state.kind && turn(store));
    }
    if (maps.compared) {
      radios("choose-view", [["plain", "As it is"], ["edited", "Edited"],
        ["both", "Side by side"], ["difference", "Difference"]],
      store.state.view, (view) => store.set({ view }));
    }
    byId("weighted").addEventListener(
      "change", (event) => store.set({ weighted: event.target.checked }));
  }

  footer() {
    const { notes, details, command, conditions } = this.page;
    const box = byId("footer"), rows = [...details];
    for (const note of notes) box.append(element("p", {}, note));
    if (conditions.length > 1) {
      const [plain, edited] = conditions;
      box.append(element("p", {}, `Edit: ${edited.name}. Mean next-token loss `
        + `${number(plain.loss)} nats as it is, ${number(edited.loss)} edited.`));
    }
    if (command) rows.unshift(["command", command]);
    if (!rows.length) return;
    const list = element("dl");
    for (const [name, value] of rows) {
      list.append(element("dt", {}, name),
        element("dd", {}, element("code", {}, value)));
    }
    box.append(element(
      "details", {}, element("summary", {}, "Details"), list));
  }

  // Other numbers, perhaps of another text; what is open stays open.
  replace({ tokens, conditions, subtitle }) {
    Object.assign(this.page, { tokens, conditions, subtitle });
    this.maps.load(this.page);
    byId("subtitle").textContent = subtitle;
    const { token, pair, sort } = this.store.state, { length } = this.maps;
    const lost = token !== null && token >= length;
    this.strip.fill();
    this.shown = null;
    Object.assign(this.store.state, {
      pointed: null, token: lost ? null : token,
      sort: lost && sort === "token" ? "layer" : sort,
      pair: pair && pair[0] < length ? pair : null,
    });
    this.drawAll();
  }

  enlarge() {
    this.enlarged = !this.enlarged;
    byId("larger").setAttribute("aria-pressed", String(this.enlarged));
    this.drawMaps();
  }

  tip(text, event) {
    const tip = byId("tip");
    tip.hidden = !text || event?.pointerType === "touch";
    if (tip.hidden) return;
    tip.textContent = text;
    const wide = tip.offsetWidth, right = event.clientX + 14;
    const left = right + wide > innerWidth ? event.clientX - wide - 10 : right;
    tip.style.left = `${Math.max(2, left)}px`;
    tip.style.top = `${Math.max(2, event.clientY - 34)}px`;
  }

  draw(names) {
    const any = (...some) => some.some((name) => names.has(name));
    const maps = any("kind", "layer", "head", "view", "weighted");
    if (any("kind", "view", "weighted", "sort")
      || (names.has("token") && this.store.state.sort === "token")) {
      this.grid.draw();
    } else if (any("layer", "head")) this.grid.drawOpen();
    if (maps) this.drawMaps();
    else this.drawOver();
    if (maps || any("token", "pair", "pointed")) this.strip.draw();
    const { token, pair } = this.store.state;
    if (names.has("pair") && pair) this.strip.show(pair[0]);
    else if (names.has("token") && token !== null) this.strip.show(token);
    this.readout();
    this.carriers();
    if (names.has("kind")) mark("choose-map", this.store.state.kind);
    if (names.has("view")) mark("choose-view", this.store.state.view);
    byId("weighted").checked = this.store.state.weighted;
    byId("weigh").hidden = this.store.state.kind === "jacobian";
  }

  drawAll() {
    this.grid.draw();
    this.draw(new Set(["kind", "view", "layer", "token", "pair"]));
  }

  drawMaps() {
    const views = this.store.views().join();
    if (views !== this.shown) {
      this.shown = views;
      this.large = this.store.views().map((view) => new LargeMap(
        this.page, this.maps, this.store, () => this.theme.name, this.grid,
        view, () => this.enlarged));
      byId("maps").replaceChildren(...this.large.map((one) => one.box));
    }
    this.title();
    for (const one of this.large) one.draw();
    this.legend();
    this.place();
  }

  // What is said of a map stands in its empty half, where that is large.
  place() {
    const info = byId("info"), [one] = this.large;
    const { side, left, top, width } = one.plan;
    const inside = this.large.length === 1 && side > CANVAS.roomy
      && width <= one.scroller.clientWidth;
    info.classList.toggle("inside", inside);
    const room = 0.52 * side;
    info.style.left = inside ? `${left + side - room - 8}px` : "";
    info.style.width = inside ? `${room}px` : "";
    info.style.top = inside ? `${top + 10}px` : "";
  }

  drawOver() {
    for (const one of this.large) one.drawOver();
  }

  title() {
    const { kind, layer, head } = this.store.state;
    const jacobian = kind === "jacobian";
    const after = layer ?? this.maps.layers - 1;
    byId("head-title").textContent = jacobian
      ? `Jacobian, embedding to after layer ${after}`
      : layer === null ? "Mean over all heads" : `Layer ${layer}, head ${head}`;
    byId("close").disabled = layer === null;
    byId("close").textContent = jacobian ? "Last layer" : "All heads";
    const facts = [];
    const change = (name, note) => {
      const each = this.maps.conditions.map((one) => {
        const { data } = one.arrays[name];
        if (layer !== null) return data[layer * this.maps.heads + head];
        return data.reduce((a, b) => a + b, 0) / data.length;
      });
      const digits = (x) => number(Number(x.toPrecision(3)));
      facts.push([note, each.map(digits).join(" → ")]);
    };
    if (!jacobian) {
      change("scores", "sink score");
      change("shares", "output / stream");
    }
    byId("facts").replaceChildren(...facts.map(([name, value]) => element(
      "div", {}, element("dt", {}, name), element("dd", {}, value))));
  }

  legend() {
    const [{ scale }] = this.large, canvas = byId("legend-canvas");
    canvas.width = 256;
    const pen = canvas.getContext("2d");
    const colors = TABLES[this.theme.name][
      scale.signed ? "signed" : "sequential"];
    for (let i = 0; i < 256; i++) {
      pen.fillStyle = `rgb(${colors.slice(3 * i, 3 * i + 3).join(",")})`;
      pen.fillRect(i, 0, 1, 10);
    }
    byId("legend-ticks").replaceChildren(...scale.ticks.map((tick) => {
      const rounded = Number(tick.toPrecision(2));
      const out = element("span", {}, scale.label(rounded));
      out.style.left = `${100 * scale.of(tick)}%`;
      return out;
    }));
    byId("legend-ticks").lastChild.className = "last";
  }

  readout() {
    const pair = this.store.lastPair(), box = byId("readout");
    const { kind } = this.store.state;
    if (!pair) {
      box.textContent = kind === "jacobian"
        ? "Rows depend on columns. Point at a cell for its number."
        : "Rows read columns. Point at a cell for its number.";
      return;
    }
    const [t, s] = pair, what = this.store.what(), at = place(t, s);
    const each = this.maps.conditions.map(
      (_, i) => this.maps.one(what, i)[at]);
    const value = (x) => {
      const out = element("span", { class: "value" });
      out.textContent = number(x);
      return out;
    };
    const verb = kind === "jacobian" ? "depends on" : "reads";
    const parts = [this.strip.bold(t), ` (${t}) ${verb} `, this.strip.bold(s),
      ` (${s}): `, value(each[0])];
    if (each.length > 1) {
      parts.push(" as it is, ", value(each[1]), " edited, ");
      parts.push(...(kind === "jacobian"
        ? ["× ", value(each[1] / each[0])]
        : ["difference ", value(each[1] - each[0])]));
    }
    box.replaceChildren(...parts);
  }

  // Who carries the Jacobian between the two tokens of a pair, the largest
  // first; a page has this where `render(carriers=...)` was given.
  carriers() {
    const { kind, layer, pair } = this.store.state, box = byId("carriers");
    const { carriers } = this.page;
    const row = carriers && pair ? carriers.rows.indexOf(pair[0]) : -1;
    box.hidden = kind !== "jacobian" || row < 0;
    if (box.hidden) return;
    const at = layer ?? this.maps.layers - 1, { names, rows } = carriers;
    const each = carriers.conditions.map(({ data }) => (c) => data[
      ((c * this.maps.layers + at) * rows.length + row) * this.maps.length
      + pair[1]]);
    const size = (c) => Math.max(...each.map((share) => Math.abs(share(c))));
    const order = names.map((_, c) => c).sort((a, b) => size(b) - size(a));
    const header = ["carrier", ...this.maps.conditions.map((one) => one.name)];
    const line = (tag, texts) => element(
      "tr", {}, ...texts.map((text) => element(tag, {}, text)));
    box.replaceChildren(
      // Whichever layer's map is open, shares are of the whole way.
      element("h3", {}, `Who carries the pair in layer ${at}: signed shares`
        + " of the map to the last layer"),
      element("table", {}, line("th", header), ...order.slice(0, LARGEST).map(
        (c) => line("td", [
          names[c], ...each.map((share) => number(share(c)))]))));
  }
}

readPage().then((page) => {
  globalThis.sinkjax = new Page(page);
  if (parent !== window) new Frame(globalThis.sinkjax.store);
  if (byId("live")) globalThis.served = new Live(globalThis.sinkjax);
}).catch((error) => {
  const failed = byId("failed");
  failed.hidden = false;
  failed.textContent = "DecompressionStream" in globalThis
    ? `This page cannot be drawn: ${error.message}`
    : "This page needs a browser of 2024 or later.";
  throw error;
});
