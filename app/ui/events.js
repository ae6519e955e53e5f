/** Server-sent events by fetch: an EventSource cannot send a key. */

import { authorization } from "./key.js";

/**
 * Read a stream of events until it ends.
 *
 * @param {string} address
 * @param {(data: object) => void} onData receives the JSON of each event
 * @returns {Promise<number>} the status; 200 after the end of the stream
 * @throws {TypeError} The server cannot be reached, or the connection broke.
 */
export async function readEvents(address, onData) {
  const headers = { Accept: "text/event-stream", ...authorization() };
  const response = await fetch(address, { headers, cache: "no-store" });
  if (!response.ok) return response.status;
  let held = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return response.status;
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) if (event.startsWith("data: ")) onData(JSON.parse(event.slice(6)));
  }
}
