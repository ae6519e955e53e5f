/** The question field with its controls, and the example questions. */

const element = (id) => document.getElementById(id);
const [query, context, send, stop] = ["query", "context", "send", "stop"].map(element);
const documents = element("documents"); // whether to use documents; disabled if the context has none
const hasKeyboard = !matchMedia("(pointer: coarse)").matches;

export class Composer {
  #mayAsk = false;
  #last = "";
  #server = null;
  #settings;
  #changed;
  #send;

  /**
   * @param {Settings} settings
   * @param {{send: (text: string) => void, changed: () => void}} hooks
   */
  constructor(settings, { send: onSend, changed }) {
    this.#settings = settings;
    this.#send = onSend;
    this.#changed = changed;
    element("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    query.addEventListener("keydown", (event) => this.#onKey(event));
    query.addEventListener("input", () => this.#changed());
    context.addEventListener("change", () => settings.set("context", context.value));
    documents.addEventListener("change", () => settings.set("documents", documents.checked));
    settings.addEventListener("change", () => this.#showSettings());
    element("examples").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      query.value = button.textContent;
      this.#submit();
    });
  }

  /** Offer the contexts of a server. */
  offer(server) {
    this.#server = server;
    context.replaceChildren(...server.contexts.map((name) => new Option(name, name)));
    context.disabled = false;
    this.#showSettings();
  }

  #showSettings() {
    if (!this.#server) return;
    context.value = this.#settings.contextOn(this.#server);
    documents.disabled = !this.#server.with_documents.includes(context.value);
    documents.checked = this.#settings.values.documents;
    this.#changed();
  }

  show({ isRunning, mayAsk, last }) {
    this.#mayAsk = mayAsk;
    this.#last = last;
    if (!isRunning && document.activeElement === stop) this.focus();
    send.hidden = isRunning;
    stop.hidden = !isRunning;
    send.disabled = !mayAsk || !query.value.trim();
    this.#showExamples();
    fit();
  }

  /** Not on touch screens: the on-screen keyboard would cover the answer. */
  focus() {
    if (hasKeyboard) query.focus({ preventScroll: true });
  }

  #submit() {
    const text = query.value.trim();
    if (!text || !this.#mayAsk) return;
    query.value = "";
    this.#send(text);
  }

  #onKey(event) {
    const composing = event.isComposing || event.keyCode === 229; // 229: Enter that ends a composition in Safari
    if (event.key === "ArrowUp" && !query.value && this.#last) {
      event.preventDefault();
      query.value = this.#last;
      this.#changed();
    }
    if (event.key !== "Enter" || event.shiftKey || composing) return;
    event.preventDefault();
    if (!event.repeat) this.#submit();
  }

  #showExamples() {
    let any = false;
    for (const item of element("examples").children) {
      item.hidden = item.dataset.context !== context.value;
      any ||= !item.hidden;
    }
    element("examples").hidden = !(this.#mayAsk && any);
  }
}

/** Grow the field with its text in browsers without field-sizing. */
function fit() {
  if (CSS.supports("field-sizing", "content")) return;
  query.style.height = "auto";
  query.style.height = `${query.scrollHeight}px`;
}
