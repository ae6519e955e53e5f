/** The drawer with the documents of the knowledge base, and the warning while some are not indexed yet. */

import { counted } from "./figures.js";
import { authorization } from "./key.js";
import { acceptDrops, upload } from "./upload.js";

const READ_AGAIN_MS = 2000;
const STATES = { indexed: "Indexed", waiting: "Waiting", skipped: "Skipped" };
const element = (id) => document.getElementById(id);

export class DocumentsDrawer {
  #drawer = element("knowledge");
  #timer = 0;
  #accepts = false;

  constructor() {
    acceptDrops(
      () => this.#accepts,
      (files) => this.#upload(files),
    );
    element("add").addEventListener("change", ({ target }) => {
      this.#upload([...target.files]);
      target.value = "";
    });
    element("open-documents").addEventListener("click", () => {
      this.#drawer.showModal();
      this.read();
    });
  }

  /** Offer the documents of a server, if it has a knowledge base. */
  offer(server) {
    element("open-documents").hidden = !server.knowledge;
    this.#accepts = server.uploads;
    element("uploads").hidden = !server.uploads;
    if (server.knowledge) this.read();
  }

  /** Store files one after the other, and tell which were not. */
  async #upload(files) {
    if (!this.#drawer.open) this.#drawer.showModal();
    const sentences = [];
    for (const file of files) {
      element("upload-notice").textContent = `Adding ${file.name}…`;
      const problem = await upload(file);
      if (problem) sentences.push(`${file.name} ${problem}.`);
    }
    const added = files.length - sentences.length;
    element("upload-notice").textContent = [`${counted(added, "document")} added.`, ...sentences].join(" ");
    this.read();
  }

  /** Read the state, again and again while documents wait or the drawer is open. */
  async read() {
    clearTimeout(this.#timer);
    const state = await fetchState();
    if (typeof state === "string") {
      element("indexed").textContent = state;
    } else {
      this.#show(state);
      if (!state.indexing && !this.#drawer.open) return;
    }
    this.#timer = setTimeout(() => this.read(), READ_AGAIN_MS);
  }

  #show({ counts, documents, indexing, problem }) {
    const { indexed, waiting, skipped } = counts;
    const parts = [`${indexed} of ${counted(indexed + waiting + skipped, "document")} indexed`];
    if (waiting) parts.push(`${waiting} waiting`);
    if (skipped) parts.push(`${skipped} skipped`);
    const sentence = `${problem ? `${problem}. ` : ""}${parts.join(", ")}.`;
    if (element("indexed").textContent !== sentence) element("indexed").textContent = sentence;
    const progress = element("indexing");
    progress.hidden = !indexing;
    progress.max = Math.max(1, indexed + waiting);
    progress.value = indexed;
    element("waiting").hidden = !indexing;
    element("waiting").textContent = `${counted(waiting, "document")} not indexed yet: answers may not know everything.`;
    if (this.#drawer.open) element("files").replaceChildren(...documents.map(item));
  }
}

function item({ name, state, chunks, problem }) {
  const shown = element("document").content.firstElementChild.cloneNode(true);
  shown.classList.add(state);
  shown.querySelector(".name").textContent = name;
  shown.querySelector(".state").textContent =
    state === "indexed" ? `${STATES.indexed}, ${counted(chunks, "passage")}` : STATES[state];
  shown.querySelector(".problem").textContent = problem ?? "";
  return shown;
}

/** The state of the knowledge base, or a sentence about an error. */
async function fetchState() {
  try {
    const response = await fetch("/v1/knowledge", { cache: "no-store", headers: authorization() });
    if (response.ok) return await response.json();
    return `The server answered ${response.status}.`;
  } catch {
    return "The server cannot be reached."; // or the response was cut
  }
}
