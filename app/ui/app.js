/** The chat page: connects user actions, the conversation, and the server. */

import { Composer } from "./composer.js";
import { Follower } from "./follow.js";
import { connect } from "./server.js";
import { Session } from "./session.js";
import { say } from "./speech.js";

const element = (id) => document.getElementById(id);
const log = element("log");
const follower = new Follower(element("latest"));
const composer = new Composer({ send: (text) => session.ask(text), changed: update });
let server = null; // until the model is ready

const session = new Session(log, {
  settings: () => composer.settings(),
  server: () => server,
  changed: update,
  save: () => {},
  shown: () => follower.toEnd(),
  started: () => {
    composer.focus();
    follower.restart();
  },
  failed: ({ type }) => {
    if (type === "loading" || type === "unauthorized") prepare();
  },
});

function update() {
  const { isRunning, isEmpty, mayAsk } = session;
  log.setAttribute("aria-busy", String(isRunning));
  document.body.classList.toggle("cannot-ask", !mayAsk);
  element("clear").hidden = isEmpty;
  element("welcome").hidden = !isEmpty;
  composer.show({ isRunning, mayAsk, last: session.lastQuestion });
}

async function prepare() {
  const notice = element("notice");
  server = null;
  update();
  const connected = await connect((obstacle) => {
    if (notice.textContent === obstacle) return; // setting it again would announce it again
    notice.textContent = obstacle;
    notice.hidden = false;
  });
  if (!notice.hidden) say("The model is ready.");
  notice.hidden = true;
  notice.textContent = "";
  server = connected;
  composer.offer(server);
  element("model").textContent = element("model").title = server.model;
  element("model").hidden = false;
  update();
}

function startOver() {
  session.open();
  composer.focus();
  say("New conversation.");
}

element("stop").addEventListener("click", (event) => {
  if (event.detail < 2) session.stop(); // ignores the second click of a double click on Send
});
element("clear").addEventListener("click", startOver);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) session.stop();
});

update();
composer.focus();
prepare();
