// A page that is served: other texts, and other weights of the sink.

class Live {
  constructor(page) {
    Object.assign(this, { page, busy: false, again: false });
    byId("live-text").value = page.page.text;
    byId("live-run").addEventListener("click", () => this.ask());
    byId("live-text").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey) return;
      event.preventDefault();
      this.ask();
    });
    byId("live-by").addEventListener("input", (event) => {
      byId("live-value").textContent = event.target.value;
      // What the slider does should be seen.
      const { store } = page;
      if (store.state.view === "plain") store.set({ view: "edited" });
      this.ask();
    });
    byId("live-where").addEventListener("change", () => this.ask());
    page.store.listen((state, names) => {
      const where = byId("live-where").value;
      if (names.has("layer") && where !== "all"
        || names.has("head") && where === "head") this.ask();
    });
    this.say();
  }

  wanted() {
    const { layer, head } = this.page.store.state;
    const where = byId("live-where").value;
    return {
      text: byId("live-text").value, by: Number(byId("live-by").value),
      layer: where === "all" ? null : layer,
      head: where === "head" ? head : null,
    };
  }

  // One request at a time; what changed meanwhile is asked for after it.
  async ask() {
    this.again = true;
    if (this.busy) return;
    this.busy = true;
    while (this.again) {
      this.again = false;
      byId("live-said").textContent = "…";
      try {
        const answer = await fetch("measure", {
          method: "POST", headers: { "Content-Type": "application/json" },
          body: JSON.stringify(this.wanted()),
        });
        const text = await answer.text();
        if (answer.ok) {
          this.page.replace(await readPage(text));
          this.say();
        } else byId("live-said").textContent = text;
      } catch {
        byId("live-said").textContent = "The server does not answer.";
      }
    }
    this.busy = false;
  }

  say() {
    const [plain, edited] = this.page.page.conditions;
    const change = edited.loss - plain.loss;
    byId("live-said").textContent = `Mean next-token loss ${number(plain.loss)} `
      + `nats as it is, ${number(edited.loss)} edited: `
      + `${change < 0 ? "" : "+"}${number(change)}. Edit: ${edited.name}`;
  }
}
