// From numbers to colours. Lightness alone tells small from large on every
// sequential scale, so that all eyes can read it; differences go from blue to
// orange.

const RAMPS = {
  light: {
    sequential: ["#f9fbf3", "#e2f1cd", "#b5dfc0", "#77c6c0", "#3fa7bf",
      "#2680b4", "#24569c", "#24337a", "#0c1846"],
    signed: ["#0b3d75", "#2f79b5", "#8bb9dc", "#dbe7f1", "#f7f7f5",
      "#f8e0cc", "#eda971", "#c96220", "#7d300a"],
  },
  // Viridis, but for its violet, which is too near to the page.
  dark: {
    sequential: ["#20242b", "#2f2f63", "#3b4d8a", "#31688e", "#26828e",
      "#1f9e89", "#4fc46a", "#a8db34", "#fde725"],
    signed: ["#9fd4ff", "#5aa5e6", "#3a6fa6", "#2b4560", "#23272e",
      "#5c3f2a", "#a2602c", "#e28f45", "#ffcf9b"],
  },
};

function channels(color) {
  return [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
}

// 256 colours, as numbers from 0 to 255: [r, g, b, r, g, b, ...].
function table(ramp) {
  const stops = ramp.map(channels), out = new Uint8ClampedArray(256 * 3);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (stops.length - 1), low = Math.min(
      Math.floor(at), stops.length - 2);
    for (let c = 0; c < 3; c++) {
      out[3 * i + c] = Math.round(
        stops[low][c] + (at - low) * (stops[low + 1][c] - stops[low][c]));
    }
  }
  return out;
}

const TABLES = Object.fromEntries(Object.entries(RAMPS).map(
  ([theme, ramps]) => [theme, {
    sequential: table(ramps.sequential), signed: table(ramps.signed),
  }]));

// A kind of scale: where a number lies from 0 to 1, and numbers to label.
//
// root    most weights are small: on a linear scale only the sink would show
// log     norms of the Jacobian, down to the smallest, but over DECADES at most
// signed  differences, of which small ones must be seen as well
// ratio   logarithms to base 2 of ratios
const DECADES = 4, DOUBLINGS = 3;

function scaleOf(kind, most, least = 0) {
  const top = most > 0 && Number.isFinite(most) ? most : 1;
  const clip = (x) => Math.min(1, Math.max(0, x));
  const root = (x) => Math.sign(x) * Math.sqrt(Math.abs(x) / top);
  const of = {
    root: (x) => clip(Math.sqrt(Math.max(0, x) / top)),
    log: (x) => (x > 0 ? clip(1 + Math.log10(x / top) / decades) : 0),
    signed: (x) => clip(0.5 + root(x) / 2),
    ratio: (x) => clip(0.5 + x / (2 * DOUBLINGS)),
  }[kind];
  const decades = Math.min(
    DECADES, Math.max(1, Math.log10(top / Math.max(least, 1e-30))));
  const steps = (parts) => parts.map((part) => part * top);
  const ticks = {
    root: steps([0, 0.02, 0.1, 0.25, 0.5, 1]),
    log: [1, 2 / 3, 1 / 3, 0].map((part) => top * 10 ** (-part * decades)),
    signed: steps([-1, -0.25, -0.05, 0, 0.05, 0.25, 1]),
    ratio: [-3, -1, 0, 1, 3],
  }[kind];
  const label = kind === "ratio"
    ? (x) => (x < 0 ? `1/${2 ** -x}` : `${2 ** x}`) : number;
  return { kind, of, ticks, label, signed: kind === "signed" || kind === "ratio" };
}

// [r, g, b] of a number on a scale.
function colorOf(scale, value, theme) {
  const colors = TABLES[theme][scale.signed ? "signed" : "sequential"];
  const at = 3 * Math.round(255 * scale.of(value));
  return [colors[at], colors[at + 1], colors[at + 2]];
}

// Black or white, whichever is read better on a colour.
function inkOn([r, g, b]) {
  return 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#16191d" : "#ffffff";
}

// A number in four digits, with a real minus sign.
function number(x) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  const size = Math.abs(x);
  const text = size === 0 ? "0"
    : size < 1e-4 || size >= 1e6 ? x.toExponential(2)
      : size >= 1000 ? x.toFixed(0)
        : String(Number(x.toPrecision(4)));
  return text.replace(/-/g, "−");
}
