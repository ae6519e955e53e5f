/** One question and its answer on the page. */

import { AnswerView } from "./answer-view.js";
import { copyText } from "./copying.js";
import { counted } from "./figures.js";

/** A text that differs after each change of a turn that this or another tab shows. */
export function stateOf({ question, answer, versions }) {
  return [question.id, versions.length, question.answers.length, answer.id, answer.updated, answer.state].join(" ");
}

export class TurnView {
  /**
   * @param {Turn} turn
   * @param {number} position counted from 1
   * @param {object} actions functions of the turn's buttons, and `shown`
   */
  constructor(turn, position, actions) {
    this.turn = turn;
    this.state = stateOf(turn); // as shown
    this.position = position;
    this.element = document.getElementById("turn").content.firstElementChild.cloneNode(true);
    for (const part of ["question", "answer"]) {
      const heading = this.#find(`.${part} h2`);
      heading.id = `${part}-${position}`;
      heading.textContent = `${part === "question" ? "Question" : "Answer"} ${position}`;
      this.#find(`.${part}`).setAttribute("aria-labelledby", heading.id);
    }
    this.#find(".question .text").textContent = turn.question.text;
    this.answer = new AnswerView(this.#find(".answer"), turn.answer, () => actions.shown());
    this.#connect(actions);
    this.#showVersions(actions);
    this.#showAlternatives(actions);
  }

  #find(selector) {
    return this.element.querySelector(selector);
  }

  #connect(actions) {
    const on = (selector, label, action) => {
      const button = this.#find(selector);
      button.setAttribute("aria-label", `${label} ${this.position}`);
      button.addEventListener("click", action);
    };
    on(".edit", "Edit question", () => this.#edit(actions));
    on(".copy", "Copy answer", (event) => this.copy(event.currentTarget.querySelector("span")));
    on(".again", "Regenerate answer", () => actions.regenerate(this));
    on(".continue", "Continue answer", () => actions.continue(this));
    this.#find(".retry").addEventListener("click", () => actions.retry(this));
  }

  copy(label) {
    return copyText(this.turn.answer.text, this.answer.text, label);
  }

  // Other versions

  #showVersions(actions) {
    const { question, versions } = this.turn;
    const index = versions.indexOf(question);
    const choose = (next) => actions.chooseVersion(this, versions[next]);
    showPager(this.#find(".question .pager"), index, versions.length, "question", choose);
  }

  #showAlternatives(actions) {
    const { answers, chosen } = this.turn.question;
    const choose = (next) => actions.chooseAnswer(this, next);
    showPager(this.#find(".answer .pager"), chosen, answers.length, "answer", choose);
  }

  // Editing

  #edit(actions) {
    const [text, form] = [this.#find(".question .text"), this.#find(".question form")];
    const field = form.querySelector("textarea");
    const close = () => {
      form.hidden = true;
      text.hidden = this.#find(".question .foot").hidden = false;
    };
    form.hidden = false;
    text.hidden = this.#find(".question .foot").hidden = true;
    field.setAttribute("aria-label", `Text of question ${this.position}`);
    field.value = this.turn.question.text;
    field.focus();
    form.onsubmit = (event) => {
      event.preventDefault();
      if (!field.value.trim() || !actions.mayAsk()) return;
      close();
      actions.edit(this, field.value.trim());
    };
    const cancel = () => {
      close();
      this.#find(".edit").focus();
    };
    form.querySelector(".cancel").onclick = cancel;
    field.onkeydown = (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        cancel();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    };
  }

  // Turns that the model does not read

  /** Show above this turn how many turns are left out; 0: none end here. */
  showOmitted(count) {
    const remark = this.#find(".omitted");
    remark.hidden = count === 0;
    const turns = count === 1 ? "turn" : counted(count, "turn");
    remark.textContent = count
      ? `The conversation is longer than the model's room. Answers no longer know the ${turns} above.`
      : "";
  }
}

function showPager(pager, index, count, noun, choose) {
  pager.hidden = count < 2;
  pager.querySelector("span").textContent = `${index + 1}/${count}`;
  const [previous, next] = pager.querySelectorAll("button");
  previous.setAttribute("aria-label", `Previous ${noun}`);
  next.setAttribute("aria-label", `Next ${noun}`);
  previous.disabled = index === 0;
  next.disabled = index === count - 1;
  previous.onclick = () => choose(index - 1);
  next.onclick = () => choose(index + 1);
}
