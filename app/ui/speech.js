/** Texts for screen readers. They announce events and whole answers, not single tokens. */

const KEPT_MS = 5000; // otherwise the page contains the answer twice
let forget = 0;

/** Announce a sentence, followed by an optional answer. */
export function say(sentence, answer = "") {
  document.getElementById("status").textContent = sentence;
  const spoken = document.getElementById("spoken");
  spoken.textContent = answer;
  clearTimeout(forget);
  forget = setTimeout(() => (spoken.textContent = ""), KEPT_MS);
}
