// Maps of the page's arrays: lower triangles, row by row, of queries by keys
// (attention) or of targets by sources (Jacobian).

const place = (t, s) => (t * (t + 1)) / 2 + s;

class Maps {
  constructor(page) { this.load(page); }

  load(page) {
    this.conditions = page.conditions;
    this.length = page.tokens.length;
    this.layers = page.conditions[0].layers;
    this.heads = page.conditions[0].heads;
    this.cells = place(this.length, 0);
    const keys = this.conditions[0].arrays.values.shape[1];
    this.group = this.heads / keys; // heads that share keys and values
    this.means = new Map();
  }

  // Whether there are two conditions, and the Jacobian.
  get compared() { return this.conditions.length > 1; }

  get hasJacobian() { return "jacobian" in this.conditions[0].arrays; }

  // Norms of what is read, [T], and of what a head writes, [T].
  valueNorms(condition, layer, head) {
    const { shape, data } = this.conditions[condition].arrays.values;
    const at = layer * shape[1] + Math.floor(head / this.group);
    return data.subarray(at * this.length, (at + 1) * this.length);
  }

  outputNorms(condition, layer, head) {
    const at = (layer * this.heads + head) * this.length;
    return this.conditions[condition].arrays.outputs.data.subarray(
      at, at + this.length);
  }

  // One condition's triangle. Without a layer it is the mean over all heads,
  // or the Jacobian after the last layer.
  one({ kind, layer, head, weighted }, condition) {
    const { arrays } = this.conditions[condition];
    if (kind === "jacobian") {
      const at = (layer ?? this.layers - 1) * this.cells;
      return arrays.jacobian.data.subarray(at, at + this.cells);
    }
    if (layer === null) return this.mean(condition, weighted);
    const at = (layer * this.heads + head) * this.cells;
    const pattern = arrays.pattern.data.subarray(at, at + this.cells);
    if (!weighted) return pattern;
    const norms = this.valueNorms(condition, layer, head);
    const out = new Float32Array(this.cells);
    for (let t = 0, i = 0; t < this.length; t++) {
      for (let s = 0; s <= t; s++, i++) out[i] = pattern[i] * norms[s];
    }
    return out;
  }

  mean(condition, weighted) {
    const name = `${condition} ${weighted}`;
    if (this.means.has(name)) return this.means.get(name);
    const sum = new Float64Array(this.cells);
    for (let layer = 0; layer < this.layers; layer++) {
      for (let head = 0; head < this.heads; head++) {
        const kind = "attention";
        const map = this.one({ kind, layer, head, weighted }, condition);
        for (let i = 0; i < sum.length; i++) sum[i] += map[i];
      }
    }
    const count = this.layers * this.heads;
    this.means.set(name, Float32Array.from(sum, (x) => x / count));
    return this.means.get(name);
  }

  // A condition's triangle, or the difference: edited less as it is, of the
  // Jacobian the logarithm of the ratio to base 2.
  of(what, view) {
    if (view !== "difference") return this.one(what, view);
    return this.differ(what.kind, this.one(what, 0), this.one(what, 1));
  }

  differ(kind, plain, edited) {
    if (kind !== "jacobian") return edited.map((x, i) => x - plain[i]);
    return edited.map((x, i) => (x === plain[i] ? 0 : Math.log2(x / plain[i])));
  }

  // The scale of a map, the same for both conditions.
  scale(what, view) {
    const { kind, weighted } = what, difference = view === "difference";
    if (kind === "jacobian" && difference) return scaleOf("ratio", 1);
    if (kind === "attention" && !weighted) {
      return scaleOf(difference ? "signed" : "root", 1);
    }
    const maps = difference ? [this.of(what, view)]
      : this.conditions.map((_, i) => this.one(what, i));
    let most = 0, least = Infinity;
    for (const map of maps) {
      for (const x of map) {
        most = Math.max(most, Math.abs(x));
        if (x > 0) least = Math.min(least, x);
      }
    }
    return scaleOf(kind === "jacobian" ? "log" : difference ? "signed" : "root",
      most, least);
  }

  // [T] what each key gets on average from the queries that see it.
  received(what, view) {
    if (view === "difference") {
      return this.differ(
        what.kind, this.received(what, 0), this.received(what, 1));
    }
    const map = this.one(what, view), out = new Float32Array(this.length);
    for (let s = 0; s < this.length; s++) {
      for (let t = s; t < this.length; t++) out[s] += map[place(t, s)];
      out[s] /= this.length - s;
    }
    return out;
  }

  // A number of every head, [L H]: its mean attention on the first token, the
  // share that it writes, or its mean attention on a chosen token.
  measure(name, condition, token) {
    const { arrays } = this.conditions[condition];
    if (name === "output") return arrays.shares.data;
    if (name !== "token") return arrays.scores.data;
    return Float32Array.from({ length: this.layers * this.heads }, (_, i) => {
      let sum = 0;
      for (let t = token; t < this.length; t++) {
        sum += arrays.pattern.data[i * this.cells + place(t, token)];
      }
      return sum / (this.length - token);
    });
  }

  measureIn(name, view, token) {
    if (view !== "difference") return this.measure(name, view, token);
    const plain = this.measure(name, 0, token);
    return this.measure(name, 1, token).map((x, i) => x - plain[i]);
  }

  // Whether a token is a sink, by the kind that was found; null if none.
  sinkAt(condition, token) {
    const { sinks } = this.conditions[condition];
    return sinks?.find((sink) => sink.position === token) ?? null;
  }
}
