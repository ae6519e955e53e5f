/** The drawer with all conversations: search, open, rename, delete, export and import. */

import { rename } from "./conversation.js";
import { counted } from "./figures.js";
import { download, fileName, fromFile, ImportError, toJson, toMarkdown } from "./history-files.js";
import { allConversations, deleteConversation, findConversation, forgetAll, putConversation } from "./history-store.js";
import { say } from "./speech.js";
import { STORAGE_PROBLEM } from "./words.js";

const SURE_MS = 4000;
const date = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const element = (id) => document.getElementById(id);

export class HistoryDrawer {
  #drawer = element("history");
  #hooks;
  #conversations = [];

  /**
   * @param {{current: () => string, open: (conversation: object) => void, deleted: (ids: string[]) => void,
   *   renamed: (id: string, title: string) => void, beforeReading: () => Promise<void>}} hooks
   *   current: id of the shown conversation; deleted: called after conversations were deleted
   */
  constructor(hooks) {
    this.#hooks = hooks;
    element("open-history").addEventListener("click", () => this.#attempt(() => this.#show()));
    element("search").addEventListener("input", () => this.#list());
    element("export").addEventListener("click", () => {
      download("conversations.json", toJson(this.#conversations), "application/json");
    });
    element("import").addEventListener("change", ({ target }) => this.#attempt(() => this.#import(target)));
    whenSure(element("forget"), "Really forget all?", () => this.#attempt(() => this.#forgetAll()));
  }

  /** Run an action on the stored conversations, and tell its problem. */
  async #attempt(action) {
    try {
      await action();
    } catch (error) {
      const isExpected = error instanceof ImportError;
      if (!isExpected) console.warn(error);
      this.#tell(isExpected ? error.message : STORAGE_PROBLEM);
    }
  }

  async #show() {
    element("search").value = "";
    element("history-notice").hidden = true;
    this.#drawer.showModal();
    await this.#read();
  }

  async #read() {
    await this.#hooks.beforeReading();
    this.#conversations = await allConversations();
    this.#list();
  }

  #list() {
    const words = folded(element("search").value).split(/\s+/).filter(Boolean);
    const found = this.#conversations.filter((conversation) => {
      const text = searched(conversation);
      return words.every((word) => text.includes(word));
    });
    element("conversations").replaceChildren(...found.map((conversation) => this.#item(conversation)));
    element("found").textContent = this.#conversations.length
      ? words.length ? `${counted(found.length, "conversation")} found` : ""
      : "No conversations yet."; // prettier-ignore
    element("export").disabled = element("forget").disabled = !this.#conversations.length;
  }

  #item(conversation) {
    const item = element("conversation").content.firstElementChild.cloneNode(true);
    const find = (selector) => item.querySelector(selector);
    const title = conversation.title || "Untitled";
    find(".name").textContent = title;
    find(".date").textContent = date.format(conversation.updated);
    if (conversation.id === this.#hooks.current()) find(".open").setAttribute("aria-current", "true");
    for (const [name, label] of [["rename", "Rename"], ["save", "Export as Markdown:"], ["delete", "Delete"]]) {
      find(`.${name}`).setAttribute("aria-label", `${label} ${title}`);
    } // prettier-ignore
    find(".open").addEventListener("click", () => {
      this.#drawer.close();
      this.#hooks.open(conversation);
    });
    find(".save").addEventListener("click", () => {
      download(`${fileName(title)}.md`, toMarkdown(conversation), "text/markdown");
    });
    find(".rename").addEventListener("click", () => this.#rename(item, conversation));
    whenSure(find(".delete"), "Sure?", () => this.#attempt(() => this.#delete(item, conversation)));
    return item;
  }

  #rename(item, conversation) {
    const [form, open] = ["form", ".open"].map((selector) => item.querySelector(selector));
    const field = form.querySelector("input");
    const close = () => {
      form.hidden = true;
      open.hidden = false;
      item.querySelector(".rename").focus();
    };
    form.hidden = false;
    open.hidden = true;
    field.value = conversation.title;
    field.select();
    field.onkeydown = (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault(); // would close the drawer
      close();
    };
    form.onsubmit = (event) => {
      event.preventDefault();
      const title = field.value.trim();
      close();
      if (title) this.#attempt(() => this.#keepTitle(item, conversation, title));
    };
  }

  async #keepTitle(item, conversation, title) {
    rename(conversation, title);
    await putConversation(conversation);
    this.#hooks.renamed(conversation.id, title);
    item.querySelector(".name").textContent = title;
    say("Renamed.");
  }

  async #delete(item, conversation) {
    const next = item.nextElementSibling ?? item.previousElementSibling;
    this.#hooks.deleted([conversation.id]);
    await deleteConversation(conversation.id);
    this.#conversations = this.#conversations.filter(({ id }) => id !== conversation.id);
    item.remove();
    (next?.querySelector(".open") ?? element("search")).focus();
    if (!this.#conversations.length) this.#list();
    say("Deleted.");
  }

  async #forgetAll() {
    this.#hooks.deleted(this.#conversations.map(({ id }) => id));
    await forgetAll();
    await this.#read();
    element("search").focus();
    say("All conversations are deleted.");
  }

  // Import

  async #import(input) {
    const [file] = input.files;
    input.value = "";
    if (!file) return;
    const conversations = fromFile(await file.text());
    for (const conversation of conversations) await putConversation(await distinct(conversation));
    await this.#read();
    this.#tell(`${counted(conversations.length, "conversation")} imported.`);
  }

  #tell(sentence) {
    element("history-notice").textContent = sentence;
    element("history-notice").hidden = false;
  }
}

/** A stored conversation that differs is kept beside an imported one. */
async function distinct(conversation) {
  const stored = await findConversation(conversation.id);
  if (!stored || stored.updated === conversation.updated) return conversation;
  return { ...conversation, id: `${conversation.id}-${Date.now().toString(36)}` };
}

function folded(text) {
  return text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
}

function searched({ title, questions }) {
  const texts = questions.flatMap(({ text, answers }) => [text, ...answers.map((answer) => answer.text)]);
  return folded([title, ...texts].join("\n"));
}

/** A button that acts on its second click; the first one asks. */
function whenSure(button, question, action) {
  const label = button.getAttribute("aria-label");
  const content = [...button.childNodes];
  let timer = 0;
  const reset = () => {
    clearTimeout(timer);
    timer = 0;
    button.classList.remove("sure");
    button.replaceChildren(...content);
    if (label) button.setAttribute("aria-label", label);
  };
  button.addEventListener("click", () => {
    if (timer) {
      reset();
      action();
      return;
    }
    button.classList.add("sure");
    button.replaceChildren(question);
    button.removeAttribute("aria-label");
    timer = setTimeout(reset, SURE_MS);
  });
}
