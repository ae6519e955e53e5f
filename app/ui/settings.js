/** Settings of requests, remembered by this browser. Empty ones are the context's defaults. */

import { ofBrowser } from "./storage.js";

const STORED_AS = "tokenstream-settings";
const DEFAULTS = Object.freeze({
  context: "",
  model: "",
  system: "",
  temperature: null,
  top_p: null,
  max_tokens: null,
  seed: null,
  thinking: null,
  documents: true,
});
const SAMPLING = ["temperature", "top_p", "max_tokens", "seed"];

export class Settings extends EventTarget {
  #values = { ...DEFAULTS, ...stored() };

  get values() {
    return this.#values;
  }

  /** Whether a request differs from the context's defaults. */
  get isChanged() {
    const { context, documents, ...others } = this.#values;
    return Object.entries(others).some(([name, value]) => value !== DEFAULTS[name]);
  }

  set(name, value) {
    this.#values[name] = value;
    this.#store();
  }

  /** Back to the defaults. */
  reset() {
    this.#values = { ...DEFAULTS };
    this.#store();
  }

  #store() {
    ofBrowser.set(STORED_AS, JSON.stringify(this.#values));
    this.dispatchEvent(new Event("change"));
  }

  /** The context of requests: the remembered one, if the server has it. */
  contextOn(server) {
    const { context } = this.#values;
    return server.contexts.includes(context) ? context : server.default;
  }

  /** The chosen model, if the server has several; empty: the server's choice. */
  modelOn(server) {
    const { model } = this.#values;
    return Object.keys(server.rooms).length > 1 && model in server.rooms ? model : "";
  }

  /**
   * Settings of a request.
   *
   * @returns {{context: string, system: string, fields: object}} fields: of the request
   */
  of(server) {
    const { system, thinking, documents } = this.#values;
    const context = this.contextOn(server);
    const fields = {};
    const model = this.modelOn(server);
    if (model) fields.model = model;
    for (const name of SAMPLING) if (this.#values[name] !== null) fields[name] = this.#values[name];
    if (server.thinks && thinking !== null) fields.enable_thinking = thinking;
    if (server.with_documents.includes(context) && !documents) fields.knowledge = false;
    return { context, system: system.trim(), fields };
  }
}

/** Known settings of the right type. */
function stored() {
  let given;
  try {
    given = JSON.parse(ofBrowser.get(STORED_AS)) ?? {};
  } catch {
    return {}; // not JSON: another program wrote it
  }
  const numbers = SAMPLING.filter((name) => Number.isFinite(given[name]));
  const texts = ["context", "model", "system"].filter((name) => typeof given[name] === "string");
  const switches = ["thinking", "documents"].filter((name) => typeof given[name] === "boolean");
  return Object.fromEntries([...numbers, ...texts, ...switches].map((name) => [name, given[name]]));
}
