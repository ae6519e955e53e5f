/** The key that the server may ask for (API_KEY): asked for once, kept until the tab is closed. */

const STORED_AS = "tokenstream-key";
const element = (id) => document.getElementById(id);

/** Headers that tell the key; none where none was asked for. */
export function authorization() {
  const key = sessionStorage.getItem(STORED_AS);
  return key === null ? {} : { Authorization: `Bearer ${key}` };
}

/**
 * Ask for the key, and keep what is given.
 *
 * @returns {Promise<void>} when there is one to try
 */
export function askForKey() {
  const [door, field, notice] = ["door", "key", "notice"].map(element);
  const wasWrong = sessionStorage.getItem(STORED_AS) !== null;
  sessionStorage.removeItem(STORED_AS);
  notice.textContent = wasWrong ? "That is not the key." : "This server asks for a key.";
  notice.hidden = false;
  element("composer").hidden = true;
  door.hidden = false;
  field.value = "";
  field.focus();
  return new Promise((resolve) => {
    const enter = (event) => {
      event.preventDefault();
      if (!field.value) return;
      // Headers hold Latin-1 alone; such a key is told as the bytes of its UTF-8, as other clients do.
      sessionStorage.setItem(STORED_AS, String.fromCharCode(...new TextEncoder().encode(field.value)));
      door.removeEventListener("submit", enter);
      door.hidden = true;
      element("composer").hidden = false;
      resolve();
    };
    door.addEventListener("submit", enter);
  });
}
