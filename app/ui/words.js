/** Errors of the server in words for people, without names of settings. */

export const STORAGE_PROBLEM = "This browser cannot keep conversations: its storage is full or not allowed.";

const integer = new Intl.NumberFormat("en");

/** A sentence about an error, and the remedy. */
export function explain({ message, type }) {
  if (type === "too_long") return tooLong(message);
  if (type === "body_too_large") return "Too long: the question is larger than this server reads. Shorten it, or send it in parts.";
  if (type === "loading") return "The model is still loading. Try again when it is ready.";
  if (type === "unauthorized") return "The key is missing or no longer valid. Enter the key of this server.";
  if (type === "shutting_down") return "The server is shutting down. Try again later.";
  if (type === "request_timeout") return "The answer took longer than this server allows. Ask for a shorter one.";
  return withoutSettings(message).replace(/^(context|model): (?=\1\b)/, ""); // "context: context 'x' is not defined"
}

/** A sentence about a busy server, or a key without tokens. `seconds`: until the next attempt. */
export function busy({ message }, seconds) {
  const again = `retrying in ${integer.format(seconds)}\u00a0s`;
  if (/^key .* has used/s.test(message)) return `This key has used its tokens of this minute, ${again}`;
  const ahead = /(\d+) requests?/.exec(message)?.[1];
  const before = ahead ? `, ${integer.format(ahead)} before you` : "";
  return `Busy${before}, ${again}`;
}

function tooLong(message) {
  const [count, limit, wanted] = [/(\d+)(?: prompt)? tokens/, /limit (?:is|of) (\d+)/, /max_tokens (\d+)/].map(
    (pattern) => pattern.exec(message)?.[1],
  );
  if (!count || !limit) return withoutSettings(message);
  const [has, room] = [count, limit].map((digits) => integer.format(digits));
  return (
    `Too long: the question has ${has} tokens with its context, and there is room for ${room} together with the ` +
    `answer. Shorten it, or ${wanted ? "choose fewer maximum tokens in the settings" : "send it in parts"}.`
  );
}

function withoutSettings(message) {
  return message.replace(/\s*\([A-Z][A-Z_]{3,}[^)]*\)/g, "");
}
