/** The page with figures of the server: load, memory, and the latest requests, every second. */

import { Chart } from "./chart.js";
import { readEvents } from "./events.js";
import { duration, tokens } from "./figures.js";
import { askForKey } from "./key.js";

const AGAIN_AFTER_MS = 2000;
const MOST_REQUESTS = 20;
const element = (id) => document.getElementById(id);
const integer = new Intl.NumberFormat("en");
const rate = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const percent = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });
const time = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const chart = new Chart(element("chart"));
let before = null; // the previous event of this connection

function show(id, text) {
  element(id).textContent = text;
}

function share(part, whole) {
  return whole ? percent.format(part / whole) : "–";
}

function onEvent(event) {
  const { figures, requests, model, time: now } = event;
  tell("");
  show("model", model || "The model is still loading…");
  element("model").hidden = false;
  show("running", integer.format(figures.running_requests));
  show("queued", integer.format(figures.waiting_requests));
  showMemory(figures);
  showHits(figures);
  const isRestarted = before && figures.generated_tokens_total < before.figures.generated_tokens_total;
  if (before && !isRestarted) {
    const generated = figures.generated_tokens_total - before.figures.generated_tokens_total;
    showSpeed(generated / (now - before.time));
  }
  if (!before) element("requests").replaceChildren(); // the first event has all latest requests
  before = event;
  for (const request of requests) element("requests").prepend(item(request));
  while (element("requests").children.length > MOST_REQUESTS) element("requests").lastElementChild.remove();
  element("none").hidden = element("requests").children.length > 0;
}

function showMemory(figures) {
  const [running, idle, free] = ["running", "idle", "free"].map((state) => figures[`kv_cache_cells.${state}`]);
  show("kv", share(running, running + idle + free));
  show("kv-cells", `${integer.format(running)} of ${tokens(running + idle + free)}, ${integer.format(idle)} reusable`);
}

function showHits(figures) {
  const asked = figures.prefix_cache_queries_total;
  const hits = ["kv", "ram", "disk"].reduce((sum, tier) => sum + figures[`prefix_cache_hits_total.${tier}`], 0);
  show("hits", share(hits, asked));
  show("hit-tokens", `${integer.format(hits)} of ${tokens(asked)} since the start`);
}

function showSpeed(speed) {
  chart.add(speed);
  show("speed", rate.format(speed));
  show("peak", `highest ${rate.format(chart.peak)}`);
  element("chart").setAttribute("aria-label", `The last two minutes: now ${rate.format(speed)}, highest ${rate.format(chart.peak)}`);
}

function item(request) {
  const shown = element("request").content.firstElementChild.cloneNode(true);
  const find = (selector) => shown.querySelector(selector);
  find(".name").textContent = `${request.route}${request.context ? ` · ${request.context}` : ""}`;
  find(".status").textContent = request.error ? `${request.status} ${request.error}` : request.finish_reason ?? request.status; // prettier-ignore
  shown.classList.toggle("failed", request.status >= 400);
  find(".when").textContent = time.format(request.ended_at * 1000);
  find(".parts").textContent = parts(request).join(" · ");
  return shown;
}

/** Words for the figures that a request has. */
function parts(request) {
  const { prompt_tokens: prompt, cached_tokens: cached, generated_tokens: generated, key } = request;
  const found = [duration(request.seconds)];
  if (key) found.push(`key ${key}`);
  if (prompt !== undefined) found.push(`prompt ${integer.format(prompt)}${cached === undefined ? "" : `, cached ${integer.format(cached)}`}`);
  if (generated !== undefined) found.push(tokens(generated));
  if (request.time_to_first_token) found.push(`first after ${duration(request.time_to_first_token)}`);
  if (request.queue_seconds >= 0.01) found.push(`waited ${duration(request.queue_seconds)}`);
  if (request.tokens_per_second) found.push(`${rate.format(request.tokens_per_second)} tokens/s`);
  return found;
}

/** Tell an obstacle; empty: none. */
function tell(sentence) {
  const notice = element("notice");
  if (notice.textContent !== sentence) notice.textContent = sentence;
  notice.hidden = sentence === "";
}

async function read() {
  before = null;
  try {
    const status = await readEvents("/stats/events", onEvent);
    if (status === 401) return await askForKey(element("figures"));
    if (status === 404) {
      tell("This server does not offer its figures at this address.");
      return new Promise(() => {}); // no attempt would succeed
    }
    if (status === 429) tell("Others look at these figures already, as many as the server allows. Trying again…");
    else tell(status === 200 ? "The server has stopped. Trying again…" : `The server answered ${status}. Trying again…`);
  } catch {
    tell("The server cannot be reached. Trying again…"); // or the connection broke
  }
  return new Promise((resolve) => setTimeout(resolve, AGAIN_AFTER_MS));
}

for (;;) await read();
