/** The shown conversation and its running answer. */

import { fill } from "./answering.js";
import {
  addAnswer,
  addQuestion,
  chooseAnswer,
  chooseVersion,
  newConversation,
  path,
  resetAnswer,
} from "./conversation.js";
import { spokenFigures } from "./figures.js";
import { say } from "./speech.js";
import { AnswerError } from "./stream.js";
import { stateOf, TurnView } from "./turn-view.js";
import { explain } from "./words.js";

const SAMPLED_TEMPERATURE = 0.8;

let isLeaving = false; // the browser then breaks the connection
addEventListener("beforeunload", () => (isLeaving = true));

export class Session {
  #log;
  #hooks;
  #views = [];
  #controller = null;

  conversation = newConversation();

  /**
   * @param {HTMLElement} log
   * @param {{settings: () => object, server: () => ?object, changed: () => void, save: (conversation: object, now?: boolean) => void,
   *   shown: () => void, started: () => void, failed: (error: AnswerError) => void}} hooks
   *   settings: of the next request; server: null until it is ready; changed: after each change of the state;
   *   save: the data changed; shown: text was added; failed: after an error
   */
  constructor(log, hooks) {
    this.#log = log;
    this.#hooks = hooks;
  }

  get isRunning() {
    return this.#controller !== null;
  }

  get mayAsk() {
    return !this.isRunning && this.#hooks.server() !== null;
  }

  get isEmpty() {
    return this.#views.length === 0;
  }

  /** The last question; empty without one. */
  get lastQuestion() {
    return this.#views.at(-1)?.turn.question.text ?? "";
  }

  /** Show a conversation; without one, a new one. */
  open(conversation = newConversation()) {
    this.stop();
    this.#controller = null;
    this.conversation = conversation;
    this.#showFrom(0);
    this.#hooks.changed();
  }

  /** Show what other tabs have added to a conversation, if it is the shown one; a running answer ends before. */
  refresh(conversation) {
    if (conversation !== this.conversation || this.isRunning) return;
    const turns = path(conversation);
    const isShown = (turn, index) => this.#views[index]?.state === stateOf(turn);
    const differing = turns.findIndex((turn, index) => !isShown(turn, index));
    if (differing < 0 && turns.length === this.#views.length) return;
    this.#showFrom(differing < 0 ? turns.length : differing);
    this.#hooks.changed();
  }

  stop() {
    this.#controller?.abort();
  }

  // Asking

  ask(text) {
    const { context } = this.#hooks.settings();
    addQuestion(this.conversation, text, this.#views.at(-1)?.turn.answer.id, context);
    this.#showFrom(this.#views.length);
    return this.#run(this.#views.at(-1));
  }

  #actions = {
    mayAsk: () => this.mayAsk,
    shown: () => this.#hooks.shown(),
    retry: (view) => {
      if (!this.mayAsk) return;
      resetAnswer(view.turn.answer, this.#hooks.settings().context);
      this.#run(view);
    },
    continue: (view) => {
      if (this.mayAsk) this.#run(view, { continues: true });
    },
    regenerate: (view) => {
      if (!this.mayAsk) return;
      addAnswer(view.turn.question, this.#hooks.settings().context);
      this.#runAt(view.position - 1, { isSampled: true });
    },
    edit: (view, text) => {
      const { context } = this.#hooks.settings();
      addQuestion(this.conversation, text, view.turn.question.after, context);
      this.#runAt(view.position - 1);
    },
    chooseAnswer: (view, index) => {
      if (this.isRunning) return;
      chooseAnswer(view.turn.question, index);
      this.#reopen(view, ".answer");
    },
    chooseVersion: (view, question) => {
      if (this.isRunning) return;
      chooseVersion(this.conversation, question);
      this.#reopen(view, ".question");
    },
  };

  #runAt(index, how) {
    this.#showFrom(index);
    return this.#run(this.#views[index], how);
  }

  #reopen(view, part) {
    const index = view.position - 1;
    const isNext = document.activeElement === view.element.querySelector(`${part} .pager button:last-of-type`);
    this.#showFrom(index);
    this.#hooks.save(this.conversation);
    this.#hooks.changed();
    const buttons = [...this.#views[index].element.querySelectorAll(`${part} .pager button`)];
    (isNext ? buttons.reverse() : buttons).find((button) => !button.disabled)?.focus();
    const { versions, question } = this.#views[index].turn;
    const [at, of] = part === ".answer"
      ? [question.chosen, question.answers.length]
      : [versions.indexOf(question), versions.length]; // prettier-ignore
    say(`${part === ".answer" ? "Answer" : "Question"} ${at + 1} of ${of}.`);
  }

  /** Show the chosen turns, from an index; earlier ones stay. */
  #showFrom(index) {
    for (const view of this.#views.splice(index)) view.element.remove();
    for (const turn of path(this.conversation).slice(index)) {
      const view = new TurnView(turn, this.#views.length + 1, this.#actions);
      this.#views.push(view);
      this.#log.append(view.element);
    }
    this.#showOmitted();
  }

  #showOmitted() {
    const omitted = this.#views.at(-1)?.turn.answer.omitted ?? 0;
    this.#views.forEach((view, index) => view.showOmitted(index === omitted ? omitted : 0));
  }

  // A running answer

  /** @param {{continues?: boolean, isSampled?: boolean}} how isSampled: another answer than the most likely one */
  async #run(view, { continues = false, isSampled = false } = {}) {
    const controller = (this.#controller = new AbortController());
    const { conversation } = this;
    const { question, answer } = view.turn;
    const isShown = () => view.element.isConnected;
    const { changed, save, shown } = this.#hooks;
    let isBusyTold = false;
    const on = {
      text: (piece) => {
        answer.updated = Date.now();
        view.answer.append(piece);
        save(conversation);
      },
      thoughts: (isThinking) => {
        view.answer.thoughts(isThinking);
        shown();
        save(conversation);
      },
      busy: (error, seconds) => {
        const sentence = view.answer.busy(error, seconds);
        if (error && !isBusyTold) say(`${sentence}.`);
        isBusyTold ||= error !== null;
      },
    };
    isLeaving = false;
    answer.state = "running";
    answer.error = "";
    answer.updated = Date.now();
    view.answer.begin();
    save(conversation, true);
    this.#hooks.started();
    changed();
    say("Answering…");
    try {
      const turns = path(conversation).slice(0, view.position - 1);
      const [settings, server] = [this.#hooks.settings(), this.#hooks.server()];
      if (isSampled) settings.fields = { ...sampled(), ...settings.fields };
      await fill({ turns, question, answer, continues, settings, server, signal: controller.signal, on });
      answer.state = "complete";
      view.answer.end();
      const cut = answer.figures.finish_reason === "length" ? "Answer cut at the limit" : "Answer complete";
      say(`${cut}, ${spokenFigures(answer.figures)}.`, view.answer.text.textContent);
    } catch (error) {
      answer.state = controller.signal.aborted ? "stopped" : isLeaving ? "interrupted" : "failed";
      if (answer.state === "failed") answer.error = messageOf(error);
      view.answer.end();
      if (answer.state === "failed") this.#report(error);
      else if (isShown()) say("Answer stopped.");
    } finally {
      if (this.#controller === controller) this.#controller = null;
      conversation.updated = answer.updated = Date.now();
      view.state = stateOf(view.turn);
      save(conversation, true);
      if (isShown()) this.#showOmitted();
      changed();
      shown();
    }
  }

  #report(error) {
    if (!(error instanceof AnswerError)) throw error;
    say(""); // screen readers announce the error as an alert
    this.#hooks.failed(error);
  }
}

/** Fields of a request for another answer: by default answers are greedy, and equal requests have equal answers. */
function sampled() {
  return { temperature: SAMPLED_TEMPERATURE, seed: Math.floor(Math.random() * 2 ** 32) };
}

function messageOf(error) {
  return error instanceof AnswerError ? explain(error) : "The page failed to show this answer.";
}
