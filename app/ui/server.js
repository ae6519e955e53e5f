/** Waits for the server's model, and loads the lists of contexts and models. */

import { askForKey, authorization } from "./key.js";

const RETRY_AFTER_MS = 1000;

/**
 * Wait until the model is loaded, without a time limit.
 *
 * @param {(obstacle: string) => void} onWait receives the reason after each failed attempt
 * @returns {Promise<{default: string, contexts: string[], model: string, with_documents: string[],
 *   thinks: boolean, rooms: Object<string, number>}>} thinks: answers may begin with thoughts; rooms: maximum tokens of
 *   prompt plus answer by name of a language model
 */
export async function connect(onWait) {
  for (;;) {
    const contexts = await attempt(onWait);
    if (contexts === "key") await askForKey(document.getElementById("composer"));
    else if (contexts !== null) return contexts;
    else await new Promise((resolve) => setTimeout(resolve, RETRY_AFTER_MS));
  }
}

/** The part of the start that the server reports, with its completed share. */
async function stage(response) {
  const { stage: name, progress } = await response.json();
  const share = progress ? ` ${Math.floor(progress * 100)} %` : "";
  return name ? `The model is still loading: ${name}${share}…` : "The model is still loading…";
}

async function rooms() {
  const response = await fetch("/v1/models", { cache: "no-store", headers: authorization() });
  if (!response.ok) return {};
  const { data, models } = await response.json();
  const names = models.map(({ name }) => name); // without the embedding model
  return Object.fromEntries(data.filter(({ id }) => names.includes(id)).map((model) => [model.id, model.max_model_len]));
}

/** The server tells whether its first model thinks. The others may, too. */
function withRooms(contexts, rooms) {
  return { ...contexts, rooms, thinks: contexts.thinks || Object.keys(rooms).length > 1 };
}

async function attempt(onWait) {
  try {
    const isReady = await fetch("/ready", { cache: "no-store" });
    const contexts = isReady.ok ? await fetch("/contexts", { cache: "no-store", headers: authorization() }) : isReady;
    if (contexts.status === 401) return "key";
    if (contexts.ok) return withRooms(await contexts.json(), await rooms());
    onWait(contexts.status === 503 ? await stage(contexts) : `The server answered ${contexts.status}. Trying again…`);
  } catch {
    onWait("The server cannot be reached. Trying again…"); // or the response was cut
  }
  return null;
}
