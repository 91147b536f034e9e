// The text: tokens that are lit by what reads them and what they read.

function element(tag, attributes = {}, ...children) {
  const out = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    out.setAttribute(name, value);
  }
  out.append(...children);
  return out;
}

const byId = (id) => document.getElementById(id);
const READERS = 4; // of a token, named below the text

class Strip {
  constructor(page, maps, store, theme) {
    Object.assign(this, { page, maps, store, theme });
    this.box = byId("strip");
    this.caption = byId("strip-caption");
    this.fill();
    const at = (event) => {
      const token = event.target.closest?.(".token");
      return token ? Number(token.dataset.at) : null;
    };
    this.box.addEventListener("pointerover", (event) => {
      if (event.pointerType === "mouse") this.point(at(event));
    });
    this.box.addEventListener("pointerleave", () => this.point(null));
    this.box.addEventListener("focusin", (event) => {
      if (event.target.matches(":focus-visible")) this.point(at(event));
    });
    this.box.addEventListener("focusout", () => this.point(null));
    this.box.addEventListener("click", (event) => {
      const token = at(event);
      if (token !== null) this.choose(token);
    });
    this.box.addEventListener("keydown", (event) => this.key(event, at(event)));
  }

  fill() {
    this.tokens = this.page.tokens.map(({ text }, i) => {
      const token = element("button", {
        type: "button", class: "token", role: "option", tabindex: "-1",
        "aria-selected": "false",
      });
      token.textContent = shown(text);
      token.dataset.at = i;
      return token;
    });
    this.tokens[0].tabIndex = 0;
    this.box.replaceChildren(...this.tokens);
  }

  point(token) {
    this.store.set({ pointed: token === null ? null : { token } });
  }

  choose(token) {
    const { token: before, sort } = this.store.state;
    const chosen = token === before ? null : token;
    this.store.set({
      token: chosen,
      sort: chosen === null && sort === "token" ? "layer" : sort,
    });
  }

  key(event, token) {
    if (token === null) return;
    const to = {
      ArrowLeft: token - 1, ArrowRight: token + 1, Home: 0,
      End: this.tokens.length - 1, ArrowUp: this.above(token, -1),
      ArrowDown: this.above(token, 1),
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    const next = this.tokens[Math.min(this.tokens.length - 1, Math.max(0, to))];
    for (const one of this.tokens) one.tabIndex = one === next ? 0 : -1;
    next.focus();
  }

  // Scrolls the text, not the page, to a token.
  show(token) {
    const { offsetTop, offsetHeight } = this.tokens[token], { box } = this;
    const top = offsetTop - box.offsetTop;
    if (top < box.scrollTop
      || top + offsetHeight > box.scrollTop + box.clientHeight) {
      box.scrollTop = top - box.clientHeight / 2;
    }
  }

  // The nearest token a line above or below.
  above(token, step) {
    const place = (one) => one.getBoundingClientRect();
    const from = place(this.tokens[token]);
    const middle = (from.left + from.right) / 2;
    let best = token, least = Infinity;
    this.tokens.forEach((one, i) => {
      const to = place(one);
      const lines = (to.top - from.top) * step;
      if (lines < 2 || lines > 1.9 * from.height) return;
      const gap = Math.abs((to.left + to.right) / 2 - middle);
      if (gap < least) [best, least] = [i, gap];
    });
    return best;
  }

  draw() {
    const { maps, store } = this, what = store.what(), [view] = store.views();
    const lit = store.lit(), pair = store.lastPair(), map = maps.of(what, view);
    const scale = maps.scale(what, view);
    const values = lit === null || lit === undefined
      ? maps.received(what, view)
      : this.tokens.map((_, i) => map[
        i <= lit ? place(lit, i) : place(i, lit)]);
    const condition = view === 1 ? 1 : 0;
    this.tokens.forEach((token, i) => {
      const color = colorOf(scale, values[i], this.theme());
      const plain = scale.of(values[i]) === (scale.signed ? 0.5 : 0);
      token.style.background = plain ? "" : `rgb(${color.join(",")})`;
      token.style.color = plain ? "" : inkOn(color);
      const sink = maps.sinkAt(condition, i);
      token.classList.toggle("sink", sink !== null);
      const chosen = store.state.token === i;
      token.setAttribute("aria-selected", String(chosen));
      token.classList.toggle(
        "active", i === lit || (pair !== null && pair.includes(i)));
      const said = `${shown(this.page.tokens[i].text).trim()}, token ${i}`;
      token.setAttribute(
        "aria-label", sink ? `${said}, ${sink.kind} sink` : said);
      token.title = this.title(i, sink, values[i], scale);
    });
    this.say(lit ?? null, values, scale, what, view);
  }

  title(i, sink, value, scale) {
    const { id } = this.page.tokens[i];
    const lines = [`position ${i}, id ${id}: ${scale.label(value)}`];
    if (sink) {
      lines.push(
        `${sink.kind} sink after layers ${sink.first_layer} to `
        + `${sink.last_layer}: ${sink.heads} heads, norm `
        + `${number(sink.norm)} and values ${number(sink.value)} times the `
        + "usual");
    }
    return lines.join("\n");
  }

  // What is lit, in words.
  say(lit, values, scale, what, view) {
    const of = what.kind === "jacobian" ? "sensitivity" : "attention";
    const quantity = { 0: of, 1: of, difference: `change in ${of}` }[view];
    if (lit === null) {
      const whom = what.kind === "jacobian"
        ? "how much later tokens depend on each, mean over them"
        : `the ${quantity} that each token gets, mean over the queries that `
          + "see it";
      const verb = what.kind === "jacobian" ? "depends on" : "reads";
      this.caption.replaceChildren(
        `Shaded: ${whom}. A dot marks a sink. Point at a token to see what it `
        + `${verb} (before it) and what ${verb} it (behind it).`);
      return;
    }
    const label = scale.kind === "ratio"
      ? (x) => `× ${number(2 ** x)}` : number;
    const best = (from, to) => values.map((value, i) => [value, i])
      .slice(from, to)
      .sort(([a], [b]) => Math.abs(b) - Math.abs(a)).slice(0, READERS)
      .flatMap(([value, i], n) => [
        n ? ", " : " ", this.bold(i), ` ${label(value)}`]);
    const words = what.kind === "jacobian"
      ? ["depends on", "is felt by"] : ["reads", "is read by"];
    const parts = [this.bold(lit), ` (${lit}) ${words[0]}`, ...best(0, lit + 1)];
    if (lit + 1 < values.length) {
      parts.push(`; ${words[1]}`, ...best(lit + 1, values.length));
    }
    this.caption.replaceChildren(...parts, ".");
  }

  bold(i) {
    const out = document.createElement("b");
    out.textContent = shown(this.page.tokens[i].text).trim();
    return out;
  }
}
