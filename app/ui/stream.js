/** Sends one request to POST /token_stream, and reads the streamed text and the details at its end. */

import { authorization } from "./key.js";

/** End of the received text that may still become the line of details. */
const DETAILS = /\n?\u001e(?:\{[^\u001e]*)?$|\n$/;

/** A failed or incomplete answer. `type` is the server's error_type, "network", "http" or "cut". */
export class AnswerError extends Error {
  /** @param {number} retryAfter seconds until the server expects to have a free place */
  constructor(message, type, retryAfter = 1) {
    super(message);
    this.name = "AnswerError";
    this.type = type;
    this.retryAfter = retryAfter;
  }
}

/**
 * Separates generated text from the line of details after it.
 *
 * The details are one JSON object after the stream's last U+001E, on a separate line. A model may generate
 * U+001E too, so text is held back only while it may still become the details.
 */
export class DetailsSplitter {
  #held = "";

  /** Add received text; returns the part of all pending text that is certainly generated text. */
  push(text) {
    const seen = this.#held + text;
    this.#held = seen.match(DETAILS)?.[0] ?? "";
    return seen.slice(0, seen.length - this.#held.length);
  }

  /** The details after the end of the stream; null if the stream was cut before they were complete. */
  details() {
    try {
      const details = JSON.parse(this.#held.replace(/^\n?\u001e/, ""));
      return "finish_reason" in details || "error" in details ? details : null;
    } catch {
      return null; // nothing held back, or an incomplete object
    }
  }
}

/**
 * Send a request, and pass on each piece of text as it arrives.
 *
 * @param {{messages: object[], context: string}} question with other fields of the route
 * @param {(text: string) => void} onText
 * @param {AbortSignal} signal ends the request and the generation
 * @returns {Promise<{finish_reason: string, prompt_tokens: number, cached_tokens: number,
 *   generated_tokens: number, time_to_first_token: number, tokens_per_second: number, sources?: object[]}>} times in
 *   seconds; sources are the retrieved passages in the prompt
 * @throws {AnswerError} The server rejected the request or failed, or the connection broke.
 * @throws {DOMException} AbortError: the signal was aborted.
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
    signal.throwIfAborted(); // received bytes may still wait here after the end of a fast answer
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
    if (typeof error === "string") {
      return new AnswerError(error, error_type, Number(response.headers.get("Retry-After")) || 1);
    }
  } catch {
    // not this server's JSON: for example the response of a proxy
  }
  return new AnswerError(`The server answered ${status}.`, "http");
}
