/** Conversations in the IndexedDB of this browser. They are sent nowhere. */

const DATABASE = "tokenstream";
const STORE = "conversations";
const SAVE_AFTER_MS = 400;

let opening = null;
let database = null;

function open() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve((database = request.result));
    request.onerror = () => reject(request.error);
  });
  return opening;
}

/** Run one operation on the store; resolves with its result when the transaction is complete. */
async function run(mode, operation) {
  if (!database) await open(); // otherwise the operation begins at once, even while the page is left
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const request = operation(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
    transaction.commit();
  });
}

/** All conversations, the latest first. */
export async function allConversations() {
  const found = await run("readonly", (store) => store.getAll());
  return found.map(restored).sort((one, other) => other.updated - one.updated);
}

/** @returns {Promise<?Conversation>} */
export async function findConversation(id) {
  const found = await run("readonly", (store) => store.get(id));
  return found ? restored(found) : null;
}

/** An answer that was running when the page was closed has ended. */
function restored(conversation) {
  for (const { answers } of conversation.questions) {
    for (const answer of answers) if (answer.state === "running") answer.state = "interrupted";
  }
  return conversation;
}

export function putConversation(conversation) {
  return run("readwrite", (store) => store.put(conversation));
}

export function deleteConversation(id) {
  return run("readwrite", (store) => store.delete(id));
}

export function forgetAll() {
  return run("readwrite", (store) => store.clear());
}

/** Saves a conversation while it changes: soon, and when the page is hidden or left. */
export class Saver {
  #pending = null;
  #timer = 0;
  #onFailure;
  #dropped = new Set();

  /** @param {(error: Error) => void} onFailure such as a full disk */
  constructor(onFailure) {
    this.#onFailure = onFailure;
    addEventListener("pagehide", () => this.flush());
    document.addEventListener("visibilitychange", () => this.flush());
  }

  /** Save soon, or `now`. */
  save(conversation, now = false) {
    if (this.#dropped.has(conversation.id)) return;
    if (this.#pending && this.#pending !== conversation) this.flush();
    this.#pending = conversation;
    if (now) this.flush();
    else this.#timer ||= setTimeout(() => this.flush(), SAVE_AFTER_MS);
  }

  /** Do not save a deleted conversation again. */
  drop(id) {
    this.#dropped.add(id);
    if (this.#pending?.id === id) this.#pending = null;
  }

  flush() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    const conversation = this.#pending;
    this.#pending = null;
    return conversation ? putConversation(conversation).catch(this.#onFailure) : Promise.resolve();
  }
}
