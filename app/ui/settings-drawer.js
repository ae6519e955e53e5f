/** The drawer with the settings. */

import { say } from "./speech.js";

const element = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

export class SettingsDrawer {
  #drawer = element("settings");
  #form = element("settings-form");
  #settings;
  #server = null;

  /** @param {Settings} settings */
  constructor(settings) {
    this.#settings = settings;
    element("open-settings").addEventListener("click", () => {
      this.#fill();
      this.#drawer.showModal();
    });
    this.#form.addEventListener("input", ({ target }) => this.#read(target));
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    element("defaults").addEventListener("click", () => {
      settings.reset();
      this.#fill();
      say("All settings have their defaults.");
    });
    settings.addEventListener("change", () => this.#mark());
    this.#mark();
  }

  /** Offer what a server has. */
  offer(server) {
    this.#server = server;
    const { context, max_tokens: longest } = this.#form.elements;
    context.replaceChildren(...server.contexts.map((name) => new Option(name, name)));
    const names = Object.keys(server.rooms);
    const options = names.map((name) => new Option(name, name));
    this.#form.elements.model.replaceChildren(new Option("Default", ""), ...options);
    element("model-setting").hidden = names.length < 2;
    if (server.max_total_tokens) longest.max = Math.max(server.max_total_tokens, ...Object.values(server.rooms));
    element("thinking-setting").hidden = !server.thinks;
    element("documents-setting").hidden = !server.with_documents.length;
    this.#fill();
  }

  /** Show on the button that settings differ from the defaults. */
  #mark() {
    const changed = this.#settings.isChanged;
    element("open-settings").classList.toggle("changed", changed);
    element("open-settings").setAttribute("aria-label", changed ? "Settings, changed" : "Settings");
  }

  #fill() {
    const { values } = this.#settings;
    const fields = this.#form.elements;
    if (this.#server) {
      fields.context.value = this.#settings.contextOn(this.#server);
      fields.model.value = this.#settings.modelOn(this.#server);
    }
    fields.system.value = values.system;
    for (const name of NUMBERS) fields[name].value = values[name] ?? "";
    fields.thinking.value = values.thinking === null ? "" : String(values.thinking);
    fields.documents.checked = values.documents;
    this.#showPrompt();
  }

  #read(field) {
    const { name, value, validity } = field;
    if (!validity.valid) {
      field.reportValidity();
      return;
    }
    if (NUMBERS.includes(name)) this.#settings.set(name, value === "" ? null : Number(value));
    else if (name === "thinking") this.#settings.set(name, value === "" ? null : value === "true");
    else if (name === "documents") this.#settings.set(name, field.checked);
    else this.#settings.set(name, value);
    this.#showPrompt();
  }

  #showPrompt() {
    const { context, system } = this.#form.elements;
    const prompt = this.#server?.prompts?.[context.value];
    element("prompt").textContent = prompt ?? "The key does not allow this context.";
    element("prompt").classList.toggle("replaced", system.value.trim() !== "");
  }
}
