/** The way of one question to the server: POST /token_stream, its text as it comes, its details at the end. */

import { authorization } from "./key.js";

/** The end of what has arrived, where it can still turn out to be the line of details. */
const DETAILS = /\n?\u001e(?:\{[^\u001e]*)?$|\n$/;

/** Why there is no answer, or only a part of one: `type` is the server's error_type, "network" or "cut". */
export class AnswerError extends Error {
  constructor(message, type) {
    super(message);
    this.name = "AnswerError";
    this.type = type;
  }
}

/**
 * Tells the generated text from the line of details behind it.
 *
 * The details are one JSON object after the stream's last U+001E, on a line of their own. A model may write
 * that character too, so text is held back only where it can still turn out to be the details.
 */
export class DetailsSplitter {
  #held = "";

  /** The part of `text`, and of what was held back, that is surely generated text. */
  push(text) {
    const seen = this.#held + text;
    this.#held = seen.match(DETAILS)?.[0] ?? "";
    return seen.slice(0, seen.length - this.#held.length);
  }

  /** The details, once the stream has ended; null where it was cut before they were whole. */
  details() {
    try {
      const details = JSON.parse(this.#held.replace(/^\n?\u001e/, ""));
      return "finish_reason" in details || "error" in details ? details : null;
    } catch {
      return null; // nothing held, or half an object: the stream was cut
    }
  }
}

/**
 * Ask, and hand on each piece of text as it arrives.
 *
 * @param {{query: string, context: string, knowledge?: boolean}} question
 * @param {(text: string) => void} onText
 * @param {AbortSignal} signal ends the request, and with it the generation
 * @returns {Promise<{finish_reason: string, prompt_tokens: number, generated_tokens: number,
 *   time_to_first_token: number, tokens_per_second: number, sources?: object[]}>} times in seconds; sources are
 *   the passages of documents that the answer was given
 * @throws {AnswerError} The server refused, failed or went away.
 * @throws {DOMException} AbortError: the signal was given.
 */
export async function ask(question, onText, signal) {
  const body = JSON.stringify({ ...question, details: true });
  const headers = { "Content-Type": "application/json", ...authorization() };
  let response;
  try {
    response = await fetch("/token_stream", { method: "POST", headers, body, signal });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new AnswerError("The server cannot be reached.", "network");
  }
  if (!response.ok) throw await refusal(response);
  const splitter = new DetailsSplitter();
  await read(response.body, (text) => onText(splitter.push(text)), signal);
  const details = splitter.details();
  if (details === null) throw cut();
  if ("error" in details) throw new AnswerError(details.error, details.error_type);
  return details;
}

async function read(stream, onText, signal) {
  const reader = stream.getReader();
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  for (;;) {
    let chunk;
    try {
      chunk = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      throw cut();
    }
    onText(decoder.decode(chunk.value, { stream: !chunk.done }));
    if (chunk.done) return;
  }
}

function cut() {
  return new AnswerError("The connection broke before the answer was complete.", "cut");
}

async function refusal(response) {
  const status = `${response.status} ${response.statusText}`.trim();
  try {
    const { error, error_type } = await response.json();
    if (typeof error === "string") return new AnswerError(error, error_type);
  } catch {
    // not the server's own JSON: something in between, such as a proxy, has answered
  }
  return new AnswerError(`The server answered ${status}.`, "http");
}
