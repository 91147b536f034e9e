// Keys, wherever the focus is, but for fields that use them.

const KEYS = [
  ["← → ↑ ↓", "the next head; in the text the next token, on a map the next pair"],
  ["Esc", "forget the pair, the token, then the open head"],
  ["Enter", "choose the token in focus"],
  ["1 2 3 4", "as it is, edited, side by side, difference"],
  ["m", "attention or Jacobian"],
  ["v", "attention times the norms of the values"],
  ["s", "the next order of the heads"],
  ["z", "larger cells"],
  ["t", "light or dark"],
  ["?", "this help"],
];

function listenToKeys({ maps, store, grid, help, theme, larger }) {
  const views = ["plain", "edited", "both", "difference"];
  const back = () => {
    const { pair, token, layer, sort } = store.state;
    if (pair) store.set({ pair: null });
    else if (token !== null) {
      store.set({ token: null, sort: sort === "token" ? "layer" : sort });
    } else if (layer !== null) store.set({ layer: null, head: null });
  };
  const nextSort = () => {
    const names = SORTS.map(([name]) => name).filter(
      (name) => name !== "token" || store.state.token !== null);
    const at = names.indexOf(store.state.sort);
    store.set({ sort: names[(at + 1) % names.length] });
  };
  const does = {
    ArrowLeft: () => grid.move(-1), ArrowRight: () => grid.move(1),
    ArrowUp: () => grid.move(0, -1), ArrowDown: () => grid.move(0, 1),
    Escape: back, "?": help, t: theme, z: larger, s: nextSort,
    m: () => maps.hasJacobian && turn(store),
    v: () => store.set({ weighted: !store.state.weighted }),
  };
  views.forEach((view, i) => {
    does[i + 1] = () => (maps.compared || !i) && store.set({ view });
  });
  addEventListener("keydown", (event) => {
    const inside = (some) => event.target.closest?.(some);
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (inside("select, textarea, dialog")) return;
    // Arrows choose among radio buttons and move sliders.
    if (inside("input") && event.key.startsWith("Arrow")) return;
    const action = does[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}

// The other kind of map. What is open there stays, where there is such a map.
function turn(store) {
  const { kind, layer } = store.state;
  const jacobian = kind !== "jacobian";
  store.set({
    kind: jacobian ? "jacobian" : "attention", layer,
    head: layer === null ? null : 0,
  });
}
