/** The chat page: connects user actions, requests to the server, the display and screen-reader texts. */

import { Follower } from "./follow.js";
import { connect } from "./server.js";
import { ask, AnswerError } from "./stream.js";
import { spokenFigures, Turn } from "./turn.js";

const element = (id) => document.getElementById(id);
const [query, context, send, stop, clear] = ["query", "context", "send", "stop", "clear"].map(element);
const documents = element("documents"); // whether to use documents; disabled if the context has none
const log = element("log");
const follower = new Follower(element("latest"));
const hasKeyboard = !matchMedia("(pointer: coarse)").matches;

let ready = false;
let running = null; // AbortController of the current answer
let turns = 0;
let withDocuments = []; // contexts that use documents
let forgetSpoken = 0;

// Status texts and the state of controls

/** Announce a sentence to screen readers, followed by an optional answer. */
function say(sentence, answer = "") {
  element("status").textContent = sentence;
  const spoken = element("spoken");
  spoken.textContent = answer;
  clearTimeout(forgetSpoken);
  forgetSpoken = setTimeout(() => (spoken.textContent = ""), 5000); // otherwise the page contains the answer twice
}

function update() {
  const busy = running !== null;
  log.setAttribute("aria-busy", String(busy));
  document.body.classList.toggle("cannot-ask", busy || !ready);
  if (!busy && document.activeElement === stop) focusQuery();
  send.hidden = busy;
  stop.hidden = !busy;
  send.disabled = !ready || !query.value.trim();
  clear.hidden = turns === 0;
  element("welcome").hidden = turns > 0;
  fitQuery();
}

/** Grow the field with its text in browsers without field-sizing. */
function fitQuery() {
  if (CSS.supports("field-sizing", "content")) return;
  query.style.height = "auto";
  query.style.height = `${query.scrollHeight}px`;
}

/** Not on touch screens: the on-screen keyboard would cover the answer. */
function focusQuery() {
  if (hasKeyboard) query.focus({ preventScroll: true });
}

function showExamples() {
  let any = false;
  for (const item of element("examples").children) {
    item.hidden = item.dataset.context !== context.value;
    any ||= !item.hidden;
  }
  element("examples").hidden = !(ready && any);
}

// The server

async function prepare() {
  const notice = element("notice");
  ready = false;
  update();
  const server = await connect((obstacle) => {
    if (notice.textContent === obstacle) return; // setting it again would announce it again
    notice.textContent = obstacle;
    notice.hidden = false;
  });
  if (!notice.hidden) say("The model is ready.");
  notice.hidden = true;
  notice.textContent = "";
  showServer(server);
  ready = true;
  update();
  showExamples();
}

function showServer(server) {
  const chosen = server.contexts.includes(context.value) ? context.value : server.default;
  context.replaceChildren(...server.contexts.map((name) => new Option(name, name, false, name === chosen)));
  context.disabled = false;
  withDocuments = server.with_documents;
  offerDocuments();
  element("model").textContent = server.model;
  element("model").title = server.model;
  element("model").hidden = false;
}

function offerDocuments() {
  documents.disabled = !withDocuments.includes(context.value);
}

// Asking

function submit() {
  const text = query.value.trim();
  if (!text || !ready || running) return;
  turns += 1;
  const question = { query: text, context: context.value };
  if (!documents.disabled && !documents.checked) question.knowledge = false;
  const turn = new Turn(question, turns, { onRetry: answer, onCopy: copy });
  log.append(turn.element);
  query.value = "";
  answer(turn);
}

async function answer(turn) {
  if (running || !ready) return;
  const controller = new AbortController();
  running = controller;
  turn.begin();
  update();
  focusQuery();
  follower.restart();
  say("Answering…");
  try {
    const details = await ask(turn.question, (text) => show(turn, text), controller.signal);
    turn.complete(details);
    const cut = details.finish_reason === "length" ? "Answer cut at the limit" : "Answer complete";
    say(`${cut}, ${spokenFigures(details)}.`, turn.answer.textContent);
  } catch (error) {
    conclude(turn, error, controller.signal);
  } finally {
    if (running === controller) running = null;
    update();
    follower.toEnd();
  }
}

function show(turn, text) {
  turn.append(text);
  follower.toEnd();
}

/** Show the reason for an early end: stopped by the user, or an error. */
function conclude(turn, error, signal) {
  if (signal.aborted) {
    turn.stopped();
    if (turn.element.isConnected) say("Answer stopped.");
    return;
  }
  if (!(error instanceof AnswerError)) {
    turn.failed("The page failed to show this answer.");
    throw error;
  }
  say(""); // screen readers announce the error as an alert
  turn.failed(error.message);
  if (error.type === "loading" || error.type === "unauthorized") prepare();
}

function startOver() {
  running?.abort();
  running = null;
  log.replaceChildren();
  turns = 0;
  update();
  focusQuery();
  say("New conversation.");
}

// Copying

async function copy(turn) {
  const text = turn.answer.textContent;
  // Browsers disable the clipboard API on pages loaded over plain HTTP from another host.
  const copied = navigator.clipboard ? await writeClipboard(text) : copySelection(turn.answer);
  if (copied) turn.showCopied();
  say(copied ? "Copied." : "The browser did not allow copying.");
}

async function writeClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // denied by the user or the browser; the caller reports it
  }
}

function copySelection(node) {
  const selection = getSelection();
  selection.selectAllChildren(node);
  const copied = document.execCommand("copy");
  selection.removeAllRanges();
  return copied;
}

// User actions

element("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
query.addEventListener("keydown", (event) => {
  const composing = event.isComposing || event.keyCode === 229; // 229: Enter that ends a composition in Safari
  if (event.key !== "Enter" || event.shiftKey || composing) return;
  event.preventDefault();
  if (!event.repeat) submit();
});
query.addEventListener("input", update);
context.addEventListener("change", showExamples);
context.addEventListener("change", offerDocuments);
element("examples").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  query.value = button.textContent;
  submit();
});
stop.addEventListener("click", (event) => {
  if (event.detail < 2) running?.abort(); // ignores the second click of a double click on Send
});
clear.addEventListener("click", startOver);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) running?.abort();
});

update();
focusQuery();
prepare();
