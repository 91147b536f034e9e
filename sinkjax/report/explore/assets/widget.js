// The page in a frame of a notebook; what it shows is the widget's `view`.

function render({ model, el }) {
  const frame = document.createElement("iframe");
  frame.title = "sinkjax: attention of a text";
  frame.style = `width:100%;height:${model.get("height")}px;border:0`;
  frame.srcdoc = model.get("html");
  let shown = null; // what the page has said last, null until it is drawn
  const choose = () => {
    const view = model.get("view");
    if (shown === null || shown === view) return;
    frame.contentWindow.postMessage({ sinkjax: view }, "*");
  };
  const hear = ({ source, data }) => {
    if (source !== frame.contentWindow) return;
    if (typeof data?.sinkjax !== "string") return;
    const first = shown === null;
    shown = data.sinkjax;
    // It starts with what Python, or another display of it, has chosen.
    if (first) return choose();
    if (shown === model.get("view")) return;
    model.set("view", shown);
    model.save_changes();
  };
  addEventListener("message", hear);
  model.on("change:view", choose);
  el.append(frame);
  return () => {
    removeEventListener("message", hear);
    model.off("change:view", choose);
  };
}

export default { render };
