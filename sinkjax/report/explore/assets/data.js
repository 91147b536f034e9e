// The arrays of the page: base64 of deflated bytes, decoded once.

function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream();
  const plain = stream.pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(plain).arrayBuffer());
}

// Every float16 as a number, by its bits.
const HALVES = (() => {
  const table = new Float32Array(1 << 16);
  for (let bits = 0; bits < table.length; bits++) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 0x1f, part = (bits & 0x3ff) / 1024;
    table[bits] = sign * (
      exponent === 0 ? part * 2 ** -14
        : exponent === 31 ? (part ? NaN : Infinity)
          : (1 + part) * 2 ** (exponent - 15));
  }
  return table;
})();

// {shape, data}: `data` a Float32Array. Bytes of one significance stand
// together, the least significant first.
async function unpacked(array) {
  const bytes = await inflated(bytesOf(array.data));
  const count = bytes.length / array.bytes;
  if (array.bytes === 2) {
    const data = new Float32Array(count);
    for (let i = 0; i < count; i++) {
      data[i] = HALVES[bytes[i] | (bytes[count + i] << 8)];
    }
    return { shape: array.shape, data };
  }
  const bits = new Uint32Array(count);
  for (let plane = 0; plane < 4; plane++) {
    for (let i = 0; i < count; i++) {
      bits[i] |= bytes[plane * count + i] << (8 * plane);
    }
  }
  return { shape: array.shape, data: new Float32Array(bits.buffer) };
}

// The page's data with every array unpacked in its place.
async function readPage(
  text = document.getElementById("data").textContent) {
  const page = JSON.parse(text);
  for (const condition of page.conditions) {
    const names = Object.keys(condition.arrays);
    const arrays = await Promise.all(
      names.map((name) => unpacked(condition.arrays[name])));
    condition.arrays = Object.fromEntries(
      names.map((name, i) => [name, arrays[i]]));
  }
  if (page.carriers) {
    page.carriers.conditions = await Promise.all(
      page.carriers.conditions.map(unpacked));
  }
  return page;
}

// Tokens for people: one line, and something to see for what is invisible.
const UNSEEN = new RegExp(
  "[\\u0000-\\u001f\\u007f-\\u009f\\u200b-\\u200f\\u202a-\\u202e\\u2066-\\u2069]",
  "g");

function shown(text) {
  const blank = /^ *$/.test(text) ? "␣".repeat(text.length || 1) : text;
  return blank.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/\r/g, "␍")
    .replace(UNSEEN, "\ufffd");
}

// The same without the space before a word, cut to some characters.
function short(text, most) {
  const characters = Array.from(shown(text).trim());
  return characters.length <= most
    ? characters.join("") : characters.slice(0, most - 1).join("") + "…";
}
