/** Copies texts to the clipboard. */

import { say } from "./speech.js";

const CONFIRMED_MS = 2000;

/**
 * Copy a text, and confirm it on a label.
 *
 * @param {string} text
 * @param {HTMLElement} shown an element with the text, for browsers without the clipboard interface
 * @param {HTMLElement} label
 */
export async function copyText(text, shown, label) {
  // Browsers disable the clipboard interface on pages loaded over plain HTTP from another host.
  const copied = navigator.clipboard ? await write(text) : copyByCommand(text, shown);
  say(copied ? "Copied." : "The browser did not allow copying.");
  if (!copied) return;
  label.textContent = "Copied";
  setTimeout(() => (label.textContent = "Copy"), CONFIRMED_MS);
}

async function write(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // denied by the user or the browser; the caller reports it
  }
}

/** Put the text on the clipboard in the event of the copy command. */
function copyByCommand(text, shown) {
  const onCopy = (event) => {
    event.clipboardData.setData("text/plain", text);
    event.preventDefault();
  };
  const selection = getSelection();
  selection.selectAllChildren(shown); // the command needs a selection
  document.addEventListener("copy", onCopy, { once: true });
  const copied = document.execCommand("copy");
  document.removeEventListener("copy", onCopy);
  selection.removeAllRanges();
  return copied;
}
