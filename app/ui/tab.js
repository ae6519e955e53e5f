/** The title and the icon of the tab: they show a running answer, and one that came while the tab was hidden. */

const NAME = "Tokenstream";
let wasRunning = false;
let isUnseen = false;
let conversation = "";

function show() {
  const state = wasRunning ? "Answering… – " : isUnseen ? "Answer ready – " : "";
  document.title = `${state}${conversation ? `${conversation} – ` : ""}${NAME}`;
  const file = wasRunning ? "icon-running.svg" : "icon.svg";
  document.querySelector('link[rel="icon"]').href = `/ui/${file}`;
}

/** @param {string} title of the conversation */
export function showInTab(isRunning, title) {
  if (wasRunning && !isRunning && document.hidden) isUnseen = true;
  wasRunning = isRunning;
  conversation = title;
  show();
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  isUnseen = false;
  show();
});
