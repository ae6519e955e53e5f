/** A block of code with its language, a copy button and colours. */

import DOMPurify from "./vendor/purify.es.mjs";
import { copyText } from "./copying.js";

const LANGUAGES = ["bash", "c", "cpp", "diff", "go", "java", "javascript", "json", "python", "rust", "sql", "typescript",
  "xml", "yaml"]; // prettier-ignore
const MOST_COLOURED = 50_000; // characters
const ALLOWED = { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true };

let highlighter = null; // a promise: loaded with the first code

/** Highlight.js with the languages above. */
function load() {
  highlighter ??= Promise.all([
    import("./vendor/highlight.min.js"),
    ...LANGUAGES.map((name) => import(`./vendor/languages/${name}.min.js`)),
  ]).then(([{ default: highlight }, ...grammars]) => {
    grammars.forEach((grammar, index) => highlight.registerLanguage(LANGUAGES[index], grammar.default));
    return highlight;
  });
  return highlighter;
}

export class CodeBlock {
  #code = document.createElement("code");
  #text = document.createTextNode("");
  #language;

  /** @param {string} language as written by the model; may be empty */
  constructor(language) {
    this.#language = language;
    this.element = document.getElementById("code").content.firstElementChild.cloneNode(true);
    this.element.querySelector(".language").textContent = language || "text";
    this.#code.append(this.#text);
    const frame = this.element.querySelector("pre");
    frame.append(this.#code);
    frame.setAttribute("aria-label", language ? `Code in ${language}` : "Code");
    this.element.querySelector("button").addEventListener("click", (event) => {
      copyText(this.#code.textContent, this.#code, event.currentTarget.querySelector("span"));
    });
  }

  append(text) {
    this.#text.appendData(text);
  }

  /** Colour the complete code, if its language is known. */
  async finish() {
    const source = this.#text.data;
    if (!this.#language || source.length > MOST_COLOURED) return;
    const highlight = await load();
    const language = this.#language.toLowerCase();
    if (!highlight.getLanguage(language)) return;
    const html = highlight.highlight(source, { language, ignoreIllegals: true }).value;
    this.#code.replaceChildren(DOMPurify.sanitize(html, ALLOWED));
  }
}
