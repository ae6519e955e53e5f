/** Runs requests for one answer: sends the conversation, waits while the server is busy, and leaves out old turns. */

import { fittingMaxTokens, messagesOf, omitMore, turnsToOmit } from "./room.js";
import { ask } from "./stream.js";
import { ThoughtsSplitter } from "./thoughts.js";

/**
 * Fill an answer. Its fields change while the text arrives.
 *
 * @param {object} job
 * @param {Turn[]} job.turns earlier turns
 * @param {Question} job.question
 * @param {Answer} job.answer
 * @param {boolean} job.continues whether to continue the answer's text
 * @param {{system: string, fields: object}} job.settings fields: of the request
 * @param {{max_total_tokens: number, rooms: Object<string, number>, thinks: boolean}} job.server
 * @param {AbortSignal} job.signal
 * @param {{text: (piece: string) => void, thoughts: () => void, busy: (error: ?AnswerError, seconds: number) => void}}
 *   job.on called when text or thoughts have arrived, and each second while the server is busy; without an error when
 *   it no longer is
 * @returns {Promise<void>} resolves when the answer is complete
 */
export async function fill({ turns, question, answer, continues, settings, server, signal, on }) {
  const { system } = settings;
  const fields = { ...settings.fields };
  const begin = performance.now();
  const before = continues ? answer.seconds : 0;
  const request = { text: question.text, context: answer.context, system, room: roomOf(server, fields.model) };
  answer.model = fields.model ?? "";
  answer.omitted = turnsToOmit(turns, { ...request, maxTokens: fields.max_tokens });
  const continued = continues ? answer.text : "";
  for (;;) {
    const reader = new AnswerReader(answer, server.thinks && !continues, on);
    const messages = messagesOf(turns.slice(answer.omitted), question.text, { system, continued });
    const body = { messages, context: answer.context, ...fields };
    if (server.thinks) body.show_thinking = true;
    try {
      answer.figures = await ask(body, (piece) => reader.read(piece), signal);
      return;
    } catch (error) {
      const isTooLong = ["too_long", "body_too_large"].includes(error.type);
      const fitting = isTooLong ? fittingMaxTokens(error, request.room) : null;
      const more = isTooLong ? omitMore(turns, answer.omitted) : null;
      if (fitting !== null && fitting !== fields.max_tokens) fields.max_tokens = fitting;
      else if (more !== null) answer.omitted = more;
      else if (error.type === "overloaded") await wait(error, signal, on.busy);
      else throw error;
    } finally {
      reader.end();
      answer.seconds = before + (performance.now() - begin) / 1000;
    }
  }
}

/** Maximum tokens of prompt plus answer. */
function roomOf(server, model) {
  return server.rooms[model] ?? server.max_total_tokens;
}

/** Adds pieces of a stream to an answer. */
class AnswerReader {
  #answer;
  #on;
  #splitter;
  #began = 0; // of the thoughts

  constructor(answer, mayThink, on) {
    this.#answer = answer;
    this.#on = on;
    this.#splitter = new ThoughtsSplitter(mayThink);
  }

  read(piece) {
    this.#add(this.#splitter.push(piece));
  }

  end() {
    this.#add(this.#splitter.end());
  }

  #add({ thoughts, text }) {
    const answer = this.#answer;
    if (this.#splitter.isThinking) this.#began ||= performance.now();
    if (this.#began && (thoughts || text || this.#splitter.isThinking)) {
      if (!answer.text) answer.thinkingSeconds = (performance.now() - this.#began) / 1000;
      answer.thoughts += thoughts;
      this.#on.thoughts(this.#splitter.isThinking);
    }
    if (!text) return;
    answer.text += text;
    this.#on.text(text);
  }
}

/** Wait for the time that the server expects, second by second. In a hidden tab, a second can take a minute. */
async function wait(error, signal, onBusy) {
  const end = performance.now() + error.retryAfter * 1000;
  const left = () => Math.ceil((end - performance.now()) / 1000);
  for (let seconds = error.retryAfter; seconds > 0; seconds = left()) {
    onBusy(error, seconds);
    await second(signal);
  }
  onBusy(null, 0);
}

function second(signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(done, 1000);
    function done() {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      if (signal.aborted) reject(signal.reason);
      else resolve();
    }
    signal.addEventListener("abort", done);
  });
}
