// In a frame, as in a notebook: the document around it is told what is shown, as
// the page's address, and may choose it.

class Frame {
  constructor(store) {
    Object.assign(this, { store, told: null });
    store.listen(() => this.tell());
    addEventListener("message", ({ source, data }) => {
      if (source !== parent || typeof data?.sinkjax !== "string") return;
      store.go(data.sinkjax);
      // Also where nothing has changed: it may have been another page's view.
      this.told = null;
      this.tell();
    });
    this.tell();
  }

  tell() {
    const address = this.store.address();
    if (address === this.told) return;
    this.told = address;
    // A frame without an address of its own has no origin to name. Nothing is
    // told but numbers of layers, heads and tokens.
    parent.postMessage({ sinkjax: address }, "*");
  }
}
