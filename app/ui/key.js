/** The API key (API_KEY) that the server may require: requested once, kept until the tab is closed. */

import { ofTab } from "./storage.js";

const STORED_AS = "tokenstream-key";
const element = (id) => document.getElementById(id);

/** Request headers with the key; empty without a key. */
export function authorization() {
  const key = ofTab.get(STORED_AS);
  return key === null ? {} : { Authorization: `Bearer ${key}` };
}

/**
 * Request the key from the user and store it.
 *
 * @param {HTMLElement} hidden the part of the page that needs the key
 * @returns {Promise<void>} resolves once a key was entered
 */
export function askForKey(hidden) {
  const [door, field, notice] = ["door", "key", "notice"].map(element);
  const wasWrong = ofTab.get(STORED_AS) !== null;
  ofTab.delete(STORED_AS);
  notice.textContent = wasWrong
    ? "This key is wrong. Enter the key that the operator of this server gave you, not one of another service."
    : "This server requires a key. Its operator has it.";
  notice.hidden = false;
  hidden.hidden = true;
  document.body.classList.add("locked");
  door.hidden = false;
  field.value = "";
  field.focus();
  return new Promise((resolve) => {
    const enter = (event) => {
      event.preventDefault();
      if (!field.value) return;
      // Headers are limited to Latin-1, so the key is sent as its UTF-8 bytes, as other clients do.
      ofTab.set(STORED_AS, String.fromCharCode(...new TextEncoder().encode(field.value)));
      door.removeEventListener("submit", enter);
      door.hidden = true;
      document.body.classList.remove("locked");
      hidden.hidden = false;
      resolve();
    };
    door.addEventListener("submit", enter);
  });
}
