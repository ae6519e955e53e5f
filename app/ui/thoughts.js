/** Thoughts of a model before its answer: a part of the stream, folded away on the page. */

import { duration } from "./figures.js";

const BEGIN = "<think>\n";
const END = "\n</think>\n\n";

/** Separates thoughts at the start of a stream from the text after them. */
export class ThoughtsSplitter {
  #held = "";
  #state; // "undecided", "thinking" or "answering"

  /** @param {boolean} mayThink whether the stream may begin with thoughts */
  constructor(mayThink) {
    this.#state = mayThink ? "undecided" : "answering";
  }

  get isThinking() {
    return this.#state === "thinking";
  }

  /** Add received text; returns what is certain. */
  push(piece) {
    let text = this.#held + piece;
    this.#held = "";
    if (this.#state === "undecided") {
      if (BEGIN.startsWith(text)) return this.#hold(text, "", "");
      this.#state = text.startsWith(BEGIN) ? "thinking" : "answering";
      if (this.isThinking) text = text.slice(BEGIN.length);
    }
    if (this.#state === "answering") return { thoughts: "", text };
    const end = text.indexOf(END);
    if (end >= 0) {
      this.#state = "answering";
      return { thoughts: text.slice(0, end), text: text.slice(end + END.length) };
    }
    const kept = partOfEnd(text);
    return this.#hold(text.slice(text.length - kept), text.slice(0, text.length - kept), "");
  }

  #hold(held, thoughts, text) {
    this.#held = held;
    return { thoughts, text };
  }

  /** The rest at the end of the stream. */
  end() {
    const held = this.#held;
    this.#held = "";
    return this.isThinking ? { thoughts: held.replace(/\n?<\/think>\s*$/, ""), text: "" } : { thoughts: "", text: held };
  }
}

/** Length of the end of a text that may be the start of END. */
function partOfEnd(text) {
  for (let length = Math.min(text.length, END.length - 1); length > 0; length--) {
    if (END.startsWith(text.slice(text.length - length))) return length;
  }
  return 0;
}

/** Show thoughts, folded away. `seconds`: their duration so far; `isThinking`: more may follow. */
export function showThoughts(details, thoughts, seconds, isThinking) {
  details.hidden = !thoughts && !isThinking;
  const time = duration(seconds);
  details.querySelector("summary span").textContent = isThinking ? `Thinking… ${time}` : `Thought for ${time}`;
  const shown = details.querySelector("p");
  if (shown.textContent !== thoughts) shown.textContent = thoughts;
}
