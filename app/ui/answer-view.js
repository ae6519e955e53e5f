/** One answer on the page. */

import { showChoices } from "./choices.js";
import { duration, figuresLine, tokens } from "./figures.js";
import { showSources } from "./sources.js";
import { StreamedMarkdown } from "./streamed-markdown.js";
import { showThoughts } from "./thoughts.js";
import { busy } from "./words.js";

const TICK_MS = 100;

export class AnswerView {
  #element;
  #answer;
  #markdown;
  #timer = 0;
  #startedAt = 0;
  #isThinking = false;
  #waiting = ""; // for a busy server

  /**
   * @param {HTMLElement} element
   * @param {Answer} answer
   * @param {() => void} onShown called when the size of the text may have changed
   */
  constructor(element, answer, onShown) {
    this.#element = element;
    this.#answer = answer;
    this.#markdown = new StreamedMarkdown(this.text, onShown);
    this.#markdown.append(answer.text);
    if (answer.state !== "running") this.end();
  }

  /** The element with the text. */
  get text() {
    return this.#find(".text");
  }

  #find(selector) {
    return this.#element.querySelector(selector);
  }

  #show(selector, isShown) {
    this.#find(selector).hidden = !isShown;
  }

  /** Show that the answer is running. */
  begin() {
    this.text.classList.remove("empty");
    if (!this.#answer.text) this.#markdown = new StreamedMarkdown(this.text, this.#markdown.onShown);
    for (const part of [".remark", ".error", ".retry", ".copy", ".continue", ".again", ".sources", ".choices"]) this.#show(part, false);
    this.#element.setAttribute("aria-busy", "true");
    this.#startedAt = performance.now();
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
    this.#tick();
  }

  #tick() {
    const seconds = (performance.now() - this.#startedAt) / 1000;
    const state = this.#answer.text || this.#isThinking ? "Answering" : "Waiting";
    this.#find(".figures").textContent = this.#waiting || `${state}… ${seconds.toFixed(1)}\u00a0s`;
  }

  append(piece) {
    this.#markdown.append(piece);
  }

  thoughts(isThinking) {
    this.#isThinking = isThinking;
    showThoughts(this.#find(".thoughts"), this.#answer.thoughts, this.#answer.thinkingSeconds, isThinking);
  }

  /** Show that the server is busy; null: no longer. */
  busy(error, seconds) {
    this.#waiting = error ? busy(error, seconds) : "";
    this.#tick();
    return this.#waiting;
  }

  /** Show the ended answer. */
  end() {
    const { text, thoughts, thinkingSeconds, figures, state } = this.#answer;
    clearInterval(this.#timer);
    this.#markdown.finish();
    this.#waiting = "";
    this.#element.setAttribute("aria-busy", "false");
    showThoughts(this.#find(".thoughts"), thoughts, thinkingSeconds, false);
    this.#find(".figures").textContent = this.#figures();
    showChoices(this.#find(".choices"), figures?.probabilities);
    if (figures?.sources) showSources(this.#find(".sources"), figures.sources);
    this.#remark();
    this.#show(".copy", text !== "");
    this.#show(".retry", state === "failed" || state === "interrupted");
    this.#show(".again", state === "complete" || state === "stopped");
    this.#show(".continue", text !== "" && state !== "elsewhere" && (state !== "complete" || figures?.finish_reason === "length"));
    if (!text && state !== "failed") this.#placeholder();
  }

  #figures() {
    const { figures, seconds, state } = this.#answer;
    const context = [this.#answer.context, this.#answer.model].filter(Boolean).join(" · ");
    if (state === "complete") return figures ? figuresLine(context, figures) : context; // none: imported
    if (state === "stopped") return `${context} · stopped after ${duration(seconds)}`;
    return `${context} · ${state === "elsewhere" ? "running in another tab" : state}`;
  }

  #remark() {
    const { error, figures, state } = this.#answer;
    this.#find(".error").textContent = error;
    this.#show(".error", error !== "");
    const remarks = {
      interrupted: "The page was closed before the answer was complete.",
      complete: figures?.finish_reason === "length"
        && `The answer was cut at the limit of ${tokens(figures.generated_tokens)}.`, // prettier-ignore
    };
    this.#find(".remark").textContent = remarks[state] || "";
    this.#show(".remark", Boolean(remarks[state]));
  }

  #placeholder() {
    const texts = { complete: "The model generated no text.", elsewhere: "The answer runs in another tab." };
    this.text.textContent = texts[this.#answer.state] ?? "Stopped before the first word.";
    this.text.classList.add("empty");
  }
}
