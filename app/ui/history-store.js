/** Conversations in the IndexedDB of this browser, and messages to its other tabs. They are sent nowhere else. */

import { merge } from "./merge.js";

const DATABASE = "tokenstream";
const STORE = "conversations";
const SAVE_AFTER_MS = 400;

let opening = null;
let database = null;

function open() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => {
      database = request.result;
      database.onclose = disconnect; // for example because the user has deleted the data of this site
      database.onversionchange = disconnect;
      resolve();
    };
    request.onerror = () => reject(request.error);
  }).catch((error) => {
    opening = null; // the next operation tries again
    throw error;
  });
  return opening;
}

function disconnect() {
  database?.close();
  database = opening = null;
}

/** Run operations on the store; resolves with the first one's result when the transaction is complete. */
async function run(mode, operation) {
  if (!database) await open(); // otherwise the operation begins at once, even while the page is left
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const request = operation(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
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
function restored(conversation, state = "interrupted") {
  for (const { answers } of conversation.questions) {
    for (const answer of answers) if (["running", "elsewhere"].includes(answer.state)) answer.state = state;
  }
  return conversation;
}

/**
 * Add what other tabs have stored to a conversation. Their running answers have the state "elsewhere".
 *
 * @returns {Promise<boolean>} whether the stored version lacks answers: a tab that was left can overwrite them
 */
export async function mergeStored(conversation) {
  const found = await run("readonly", (store) => store.get(conversation.id));
  if (!found) return false;
  merge(conversation, restored(found, "elsewhere"));
  return countAnswers(conversation) > countAnswers(found);
}

function countAnswers({ questions }) {
  return questions.reduce((sum, { answers }) => sum + answers.length, 0);
}

/** Store a conversation, after what other tabs have stored was added to it. */
export async function putConversation(conversation) {
  await run("readwrite", (store) => {
    const reading = store.get(conversation.id);
    reading.onsuccess = () => {
      if (reading.result) merge(conversation, restored(reading.result, "elsewhere"));
      store.put(conversation);
    };
    return reading;
  });
}

/** Store a conversation without a read: the browser completes it even if the page is left. */
function putAlone(conversation) {
  return run("readwrite", (store) => {
    const writing = store.put(conversation);
    writing.transaction.commit();
    return writing;
  });
}

export async function deleteConversation(id) {
  await run("readwrite", (store) => store.delete(id));
  tellTabs({ deleted: [id] });
}

export async function forgetAll() {
  const ids = await run("readwrite", (store) => {
    const reading = store.getAllKeys();
    store.clear();
    return reading;
  });
  tellTabs({ deleted: ids });
}

// Other tabs

const channel = new BroadcastChannel(DATABASE);

/** @param {{saved: string}|{shown: string}|{deleted: string[]}} change ids of conversations */
export function tellTabs(change) {
  channel.postMessage(change);
}

/** @param {(change: {saved: ?string, shown: ?string, deleted: ?string[]}) => void} onChange called after changes by other tabs */
export function listenToTabs(onChange) {
  channel.addEventListener("message", ({ data }) => onChange(data));
}

/** Saves a conversation while it changes: soon, and when the page is hidden or left. */
export class Saver {
  #pending = null;
  #timer = 0;
  #hooks;
  #dropped = new Set();
  #writing = null; // the last save that is not complete
  #shared = new Set(); // ids of conversations that other tabs show or have changed

  /**
   * @param {{saved: (conversation: object) => void, failed: (error: Error) => void}} hooks
   *   saved: turns of other tabs may have been added; failed: for example because the disk is full
   */
  constructor(hooks) {
    this.#hooks = hooks;
    open().catch(() => {}); // soon, for the first save; which reports a failure
    addEventListener("pagehide", () => this.#leave());
    document.addEventListener("visibilitychange", () => this.flush());
    listenToTabs(({ saved, shown }) => this.#shared.add(saved ?? shown));
  }

  /** Save soon; or `now`, and tell other tabs. */
  save(conversation, now = false) {
    if (this.#dropped.has(conversation.id)) return;
    if (this.#pending && this.#pending !== conversation) this.flush();
    this.#pending = conversation;
    if (now) this.flush().then(() => tellTabs({ saved: conversation.id }));
    else this.#timer ||= setTimeout(() => this.flush(), SAVE_AFTER_MS);
  }

  /** Save a conversation that was deleted, and then imported. */
  keep(id) {
    this.#dropped.delete(id);
  }

  /** Do not save a deleted conversation again. */
  drop(id) {
    this.#dropped.add(id);
    if (this.#pending?.id === id) this.#pending = null;
  }

  flush() {
    return this.#put(this.#pending && this.#shared.has(this.#pending.id) ? putConversation : putAlone);
  }

  #leave() {
    this.#pending ??= this.#writing?.conversation; // the browser ends a transaction that waits for its read
    const id = this.#pending?.id;
    this.#put(putAlone);
    if (id) tellTabs({ saved: id });
  }

  async #put(put) {
    clearTimeout(this.#timer);
    this.#timer = 0;
    const conversation = this.#pending;
    this.#pending = null;
    if (!conversation) return;
    const writing = (this.#writing = { conversation });
    try {
      await put(conversation);
      this.#hooks.saved(conversation);
    } catch (error) {
      this.#hooks.failed(error);
    } finally {
      if (this.#writing === writing) this.#writing = null;
    }
  }
}
