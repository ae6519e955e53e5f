/**
 * The messages of a request, and the turns that fit into the model's room.
 *
 * Sizes are in tokens. The server counts exactly and rejects a request that is too long; the page estimates, so that
 * an answer has room too.
 */

const BYTES_PER_TOKEN = 3; // low, so that the estimate is rather too high
const TOKENS_PER_MESSAGE = 6; // control tokens around a message
const DEFAULT_ANSWER = 512;
const LARGEST_ANSWER_SHARE = 1 / 4;
const KEPT_SHARE = 1 / 2; // many turns are left out at once: each time, the rest is prefilled again
const encoder = new TextEncoder();

function estimate(text) {
  return Math.ceil(encoder.encode(text).length / BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE;
}

function size({ question, answer }) {
  return estimate(question.text) + estimate(answer.text);
}

/** Turns whose answers have a text. Roles alternate in the messages, so the others are left out whole. */
function answered(turns) {
  return turns.filter(({ answer }) => answer.text);
}

/**
 * Estimate a request. The last answer's figures count everything before the question, with the context.
 *
 * @param {Turn[]} turns earlier turns in the request
 * @param {string} text the question
 * @param {string} context
 * @param {string} system replaces the context's prompt
 */
function needed(turns, text, context, system) {
  const last = turns.at(-1)?.answer;
  if (last?.figures?.prompt_tokens && last.context === context) {
    return last.figures.prompt_tokens + last.figures.generated_tokens + estimate(text);
  }
  return turns.reduce((sum, turn) => sum + size(turn), estimate(text) + estimate(system));
}

/**
 * Number of oldest turns to leave out.
 *
 * @param {Turn[]} turns all earlier turns
 * @param {{text: string, context: string, system: string, room: number, maxTokens: ?number}} request
 *   room: maximum tokens of prompt plus answer; 0: unknown
 */
export function turnsToOmit(turns, { text, context, system, room, maxTokens }) {
  let omitted = turns.at(-1)?.answer.omitted ?? 0;
  const most = room - Math.min(maxTokens ?? DEFAULT_ANSWER, room * LARGEST_ANSWER_SHARE);
  let total = needed(turns.slice(omitted), text, context, system);
  if (!room || total <= most) return omitted;
  while (omitted < turns.length && total > most * KEPT_SHARE) total -= size(turns[omitted++]);
  return omitted;
}

/**
 * The maximum of tokens that fits, after the server has rejected a higher one; null if it is too small for an answer.
 *
 * @param {{message: string}} error
 * @param {number} room
 */
export function fittingMaxTokens({ message }, room) {
  const [, count, limit] = /^max_tokens: (\d+) prompt tokens and max_tokens \d+ exceed the limit of (\d+)/.exec(message) ?? [];
  const fitting = Number(limit) - Number(count);
  return fitting >= room * LARGEST_ANSWER_SHARE ? fitting : null;
}

/** Leave out more, after the server has rejected a request as too long; null if nothing is left to omit. */
export function omitMore(turns, omitted) {
  const left = turns.length - omitted;
  return left ? omitted + Math.ceil(left / 2) : null;
}

/**
 * The messages of a request.
 *
 * @param {Turn[]} turns earlier turns in the request
 * @param {string} text the question
 * @param {{system: string, continued: string}} options continued: the start of the answer
 */
export function messagesOf(turns, text, { system, continued }) {
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const { question, answer } of answered(turns)) {
    messages.push({ role: "user", content: question.text }, { role: "assistant", content: answer.text });
  }
  messages.push({ role: "user", content: text });
  if (continued) messages.push({ role: "assistant", content: continued });
  return messages;
}
