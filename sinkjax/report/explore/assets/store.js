// What is shown, and its address. Listeners are told of every change.
//
// kind      "attention" or "jacobian"
// layer     of the open map, null for the mean over all heads, or the Jacobian
//           after the last layer
// head      of the open map; 0 for the Jacobian
// view      "plain", "edited", "both" or "difference"
// sort      "layer", "sink", "output" or "token"
// weighted  attention times the norms of the values
// token     chosen in the text, null for none
// pair      [t, s] chosen on the map, null for none
// pointed   {token} or {pair} under the pointer; not in the address
const START = {
  kind: "attention", layer: null, head: null, view: "plain", sort: "layer",
  weighted: false, token: null, pair: null, pointed: null,
};

class Store {
  constructor(maps) {
    this.maps = maps;
    this.state = { ...START, ...this.fromAddress() };
    this.listeners = [];
    const again = () => this.set(
      { ...START, ...this.fromAddress() }, { address: false });
    addEventListener("hashchange", again);
    addEventListener("popstate", again);
  }

  listen(listener) { this.listeners.push(listener); }

  set(changes, { address = true } = {}) {
    const before = this.state;
    this.state = { ...before, ...changes };
    const names = Object.keys(START).filter(
      (name) => this.state[name] !== before[name]);
    if (!names.length) return;
    if (address && names.some((name) => name !== "pointed")) {
      this.toAddress(names.includes("layer") || names.includes("head"));
    }
    for (const listener of this.listeners) listener(this.state, new Set(names));
  }

  // The view of an address.
  go(address) { this.set({ ...START, ...this.fromAddress(address) }); }

  // Conditions that the maps show, as `Maps.of` takes them.
  views() {
    return {
      plain: [0], edited: [1], both: [0, 1], difference: ["difference"],
    }[this.state.view];
  }

  what() {
    const { kind, layer, head, weighted } = this.state;
    return { kind, layer, head, weighted: weighted && kind === "attention" };
  }

  // The token that is lit: under the pointer, else chosen.
  lit() { return this.state.pointed?.token ?? this.state.token; }

  lastPair() { return this.state.pointed?.pair ?? this.state.pair; }

  address() {
    const { kind, layer, head, view, sort, weighted, token, pair } = this.state;
    const parts = [];
    if (kind !== START.kind) parts.push(`map=${kind}`);
    if (layer !== null) parts.push(`head=${layer}.${head}`);
    if (view !== START.view) parts.push(`view=${view}`);
    if (sort !== START.sort) parts.push(`sort=${sort}`);
    if (weighted) parts.push("values=1");
    if (token !== null) parts.push(`token=${token}`);
    if (pair) parts.push(`pair=${pair.join(".")}`);
    return parts.join("&");
  }

  toAddress(entry) {
    // A frame of a notebook may refuse to have an address.
    try {
      const method = entry ? "pushState" : "replaceState";
      history[method](null, "", `#${this.address()}`);
    } catch { /* the page works without one */ }
  }

  // Only what this page has: an address may be of another one.
  fromAddress(address = location.hash.slice(1)) {
    const given = new URLSearchParams(address), out = {};
    const { length, layers, heads, compared, hasJacobian } = this.maps;
    const numbers = (name) => (given.get(name) ?? "").split(".")
      .map((x) => (/^\d+$/.test(x) ? Number(x) : NaN));
    if (given.get("map") === "jacobian" && hasJacobian) out.kind = "jacobian";
    const [layer, head] = numbers("head");
    if (layer < layers && head < (out.kind ? 1 : heads)) {
      Object.assign(out, { layer, head });
    }
    if (compared && ["edited", "both", "difference"].includes(
      given.get("view"))) out.view = given.get("view");
    const [token] = numbers("token");
    if (token < length) out.token = token;
    const sort = given.get("sort");
    if (["sink", "output"].includes(sort)) out.sort = sort;
    if (sort === "token" && token < length) out.sort = sort;
    if (given.get("values") === "1") out.weighted = true;
    const [t, s] = numbers("pair");
    if (t < length && s <= t) out.pair = [t, s];
    return out;
  }
}
