/** One question and its answer on the page. Inserted as text, never as HTML. */

import { countSources, showSources } from "./sources.js";

const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const integer = new Intl.NumberFormat("en");
const TICK_MS = 100;

/** For example "1 token" or "42 tokens". */
function tokens(count) {
  return `${integer.format(count)} ${count === 1 ? "token" : "tokens"}`;
}

function duration(seconds) {
  return seconds < 1 ? `${Math.round(seconds * 1000)}\u00a0ms` : `${number.format(seconds)}\u00a0s`;
}

/** Figures of a finished answer, for screen readers. */
export function spokenFigures(details) {
  const speed = details.tokens_per_second;
  const parts = [tokens(details.generated_tokens)];
  if (speed > 0) parts.push(`${number.format(speed)} tokens per second`);
  if (details.sources) parts.push(countSources(details.sources));
  return parts.join(", ");
}

export class Turn {
  #text;
  #element;
  #startedAt;
  #timer;

  /**
   * @param {{query: string, context: string, knowledge?: boolean}} question
   * @param {number} position counted from 1
   * @param {{onRetry: (turn: Turn) => void, onCopy: (turn: Turn) => void}} handlers
   */
  constructor(question, position, { onRetry, onCopy }) {
    this.question = question;
    const template = document.getElementById("turn");
    this.#element = template.content.firstElementChild.cloneNode(true);
    for (const part of ["question", "answer"]) {
      const heading = this.#find(`.${part} h2`);
      heading.id = `${part}-${position}`;
      heading.textContent = `${part === "question" ? "Question" : "Answer"} ${position}`;
      this.#find(`.${part}`).setAttribute("aria-labelledby", heading.id);
    }
    this.#find(".question .text").textContent = question.query;
    this.#find(".retry").addEventListener("click", () => onRetry(this));
    this.#find(".copy").addEventListener("click", () => onCopy(this));
    this.#find(".copy").setAttribute("aria-label", `Copy answer ${position}`);
  }

  get element() {
    return this.#element;
  }

  /** The element with the text of the answer. */
  get answer() {
    return this.#find(".answer .text");
  }

  /** Seconds since the request. */
  get elapsed() {
    return (performance.now() - this.#startedAt) / 1000;
  }

  #find(selector) {
    return this.#element.querySelector(selector);
  }

  /** Wait for an answer; clears an earlier attempt. */
  begin() {
    this.#text = document.createTextNode("");
    this.answer.replaceChildren(this.#text);
    this.answer.classList.remove("empty");
    for (const part of [".remark", ".error", ".retry", ".copy"]) this.#find(part).hidden = true;
    this.#find(".answer").setAttribute("aria-busy", "true");
    this.#startedAt = performance.now();
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
    this.#tick();
  }

  #tick() {
    const state = this.#text.length ? "Answering" : "Waiting";
    this.#find(".figures").textContent = `${state}… ${this.elapsed.toFixed(1)}\u00a0s`;
  }

  append(text) {
    this.#text.appendData(text);
  }

  complete(details) {
    const { generated_tokens: count, tokens_per_second: speed, time_to_first_token: first } = details;
    const figures = [this.question.context, tokens(count)];
    if (speed > 0) figures.push(`${number.format(speed)} tokens/s`);
    if (first > 0) figures.push(`first after ${duration(first)}`);
    const waiting = details.sources_waiting;
    if (waiting) figures.push(`${waiting} ${waiting === 1 ? "document" : "documents"} not indexed yet`);
    this.#end(figures);
    if (details.sources) showSources(this.#find(".sources"), details.sources);
    if (details.finish_reason === "length") this.#remark(`The answer was cut at the limit of ${tokens(count)}.`);
    if (!this.#text.length) this.#placeholder("The model generated no text.");
  }

  stopped() {
    this.#end([this.question.context, `stopped after ${duration(this.elapsed)}`]);
    if (!this.#text.length) this.#placeholder("Stopped before the first word.");
  }

  /** Show the error, and a button to try again. */
  failed(message) {
    this.#end([this.question.context, "failed"]);
    const error = this.#find(".error");
    error.textContent = message;
    error.hidden = false;
    this.#find(".retry").hidden = false;
  }

  #end(figures) {
    clearInterval(this.#timer);
    this.#find(".answer").setAttribute("aria-busy", "false");
    this.#find(".figures").textContent = figures.join(" · ");
    this.#find(".copy").hidden = !this.#text.length;
  }

  #remark(text) {
    this.#find(".remark").textContent = text;
    this.#find(".remark").hidden = false;
  }

  #placeholder(text) {
    this.answer.textContent = text;
    this.answer.classList.add("empty");
  }

  /** Confirm the copy on the button for 2 seconds. */
  showCopied() {
    const label = this.#find(".copy span");
    label.textContent = "Copied";
    setTimeout(() => (label.textContent = "Copy"), 2000);
  }
}
