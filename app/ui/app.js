/** The chat page: connects the conversation, the server, the drawers and user actions. */

import { Composer } from "./composer.js";
import { rename } from "./conversation.js";
import { DocumentsDrawer } from "./documents-drawer.js";
import { Follower } from "./follow.js";
import { HistoryDrawer } from "./history-drawer.js";
import { findConversation, listenToTabs, mergeStored, Saver, tellTabs } from "./history-store.js";
import { connect } from "./server.js";
import { Session } from "./session.js";
import { Settings } from "./settings.js";
import { SettingsDrawer } from "./settings-drawer.js";
import { say } from "./speech.js";
import { ofTab } from "./storage.js";
import { showInTab } from "./tab.js";
import { STORAGE_PROBLEM } from "./words.js";

const SHOWN = "tokenstream-conversation"; // id of the conversation in this tab
const element = (id) => document.getElementById(id);
const log = element("log");
const notice = element("notice");
// Errors after which the lists of the server may differ, or it may not be ready.
const CHANGED = ["cut", "loading", "network", "shutting_down", "unauthorized", "unknown_context", "unknown_model"];
const follower = new Follower(element("latest"));
let server = null; // until the model is ready

// The conversation

const saver = new Saver({ saved: (conversation) => session.refresh(conversation), failed: storageFailed });
const session = new Session(log, {
  settings: () => settings.of(server),
  server: () => server,
  changed: update,
  save: (conversation, now) => saver.save(conversation, now),
  shown: () => follower.toEnd(),
  started: () => {
    composer.focus();
    follower.restart();
  },
  failed: ({ type }) => {
    if (CHANGED.includes(type)) prepare();
  },
});
const settings = new Settings();
const settingsDrawer = new SettingsDrawer(settings);
const documentsDrawer = new DocumentsDrawer();
const composer = new Composer(settings, { send: (text) => session.ask(text), changed: update });
new HistoryDrawer({
  current: () => session.conversation.id,
  open: (conversation) => {
    if (conversation.id === session.conversation.id) return;
    saver.keep(conversation.id);
    session.open(conversation);
    tellTabs({ shown: conversation.id });
    follower.restart();
    say("Conversation opened.");
  },
  renamed: (id, title) => {
    if (id === session.conversation.id) rename(session.conversation, title);
    update();
  },
  deleted: drop,
  beforeReading: () => saver.flush(),
});

listenToTabs(async ({ saved, shown, deleted }) => {
  if (deleted) drop(deleted);
  const { conversation } = session;
  if (shown === conversation.id) saver.save(conversation, true); // the other tab then knows of this one
  if (saved !== conversation.id) return;
  if (await mergeStored(conversation).catch(storageFailed)) saver.save(conversation, true);
  session.refresh(conversation);
});

/** Forget deleted conversations. */
function drop(ids) {
  ids.forEach((id) => saver.drop(id));
  if (ids.includes(session.conversation.id)) session.open();
}

function update() {
  if (server) showModel(settings.modelOn(server) || server.model);
  const { conversation, isRunning, isEmpty, mayAsk } = session;
  log.setAttribute("aria-busy", String(isRunning));
  document.body.classList.toggle("cannot-ask", !mayAsk);
  element("clear").hidden = isEmpty;
  element("welcome").hidden = !isEmpty;
  composer.show({ isRunning, mayAsk, last: session.lastQuestion });
  showInTab(isRunning, conversation.title);
  if (isEmpty) ofTab.delete(SHOWN);
  else ofTab.set(SHOWN, conversation.id);
}

function showModel(name) {
  element("model").textContent = element("model").title = name;
  element("small").hidden = !(server.is_small && name === server.model); // the size of other models is unknown
}

/** Show the conversation that this tab had before it was loaded again. */
async function restore() {
  const id = ofTab.get(SHOWN);
  const conversation = id && (await findConversation(id).catch(storageFailed));
  if (!conversation || !session.isEmpty) return;
  session.open(conversation);
  tellTabs({ shown: conversation.id });
  follower.restart();
}

function storageFailed(error) {
  console.warn(error);
  show(STORAGE_PROBLEM);
  return null;
}

// The server

function show(sentence) {
  if (notice.textContent === sentence) return; // setting it again would announce it again
  notice.textContent = sentence;
  notice.hidden = false;
}

async function prepare() {
  server = null;
  update();
  const connected = await connect(show);
  if (!notice.hidden) say("The model is ready.");
  notice.hidden = true;
  notice.textContent = "";
  server = connected;
  settingsDrawer.offer(server);
  documentsDrawer.offer(server);
  composer.offer(server);
  element("model").hidden = false;
  element("open-stats").hidden = !server.stats;
  update();
}

// User actions

element("stop").addEventListener("click", (event) => {
  if (event.detail < 2) session.stop(); // ignores the second click of a double click on Send
});
element("clear").addEventListener("click", () => {
  session.open();
  composer.focus();
  say("New conversation.");
});
document.addEventListener("keydown", (event) => {
  const isInDrawer = document.querySelector("dialog[open]") !== null;
  if (event.key === "Escape" && !event.isComposing && !isInDrawer) session.stop();
});
for (const drawer of document.querySelectorAll("dialog")) {
  drawer.addEventListener("click", (event) => {
    if (event.target === drawer && isOutside(event, drawer.getBoundingClientRect())) drawer.close();
  });
}

function isOutside({ clientX: x }, { left, right }) {
  return x < left || x > right;
}

await restore();
update();
composer.focus();
prepare();
