/** Conversations as files: JSON with everything, Markdown with the chosen turns. */

import { addQuestion, newConversation, path } from "./conversation.js";

const FORMAT = "tokenstream-conversations";
const MARK = "<!-- tokenstream -->";
const PART = new RegExp(`^## (Question|Answer)(?: \\((.*)\\))? ${MARK}$`, "m");
const STATES = ["complete", "stopped", "failed", "interrupted"];

/** A file was not written by this page. */
export class ImportError extends Error {}

export function toJson(conversations) {
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

export function toMarkdown(conversation) {
  const inner = (text) => text.replaceAll(MARK, "");
  const parts = path(conversation).flatMap(({ question, answer }) => [
    `## Question ${MARK}\n\n${inner(question.text)}`,
    `## Answer (${answer.context}) ${MARK}\n\n${inner(answer.text)}`,
  ]);
  return `# ${conversation.title}\n\n${parts.join("\n\n")}\n`;
}

/**
 * Read a file of either format.
 *
 * @returns {Conversation[]}
 * @throws {ImportError}
 */
export function fromFile(text) {
  if (PART.test(text)) return [fromMarkdown(text)];
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new ImportError("The file is neither JSON nor Markdown of this page.");
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) {
    throw new ImportError("The file has no conversations of this page.");
  }
  return file.conversations.map(checked);
}

function fromMarkdown(text) {
  const [head, ...parts] = text.split(PART);
  const conversation = newConversation();
  conversation.title = /^# (.*)$/m.exec(head)?.[1] ?? "";
  let after;
  for (let i = 0; i + 2 < parts.length; i += 3) {
    const [kind, context, body] = [parts[i], parts[i + 1], parts[i + 2].trim()];
    if (kind === "Question") addQuestion(conversation, body, after, "");
    const answer = conversation.questions.at(-1)?.answers[0];
    if (kind !== "Answer" || !answer) continue;
    Object.assign(answer, { context: context ?? "", text: body, state: "complete" });
    after = answer.id;
  }
  for (const { answers } of conversation.questions) if (answers[0].state === "running") answers[0].state = "interrupted";
  return conversation;
}

// JSON: only known fields of the right types are taken over

const string = (value) => (typeof value === "string" ? value : "");
const count = (value) => (Number.isFinite(value) && value >= 0 ? value : 0);
const time = (value) => Math.min(count(value), Date.now());
const list = (value) => (Array.isArray(value) ? value : []);

function checked(given) {
  const questions = list(given?.questions).map(checkedQuestion);
  if (!string(given?.id) || !questions.length) throw new ImportError("A conversation in the file has no questions.");
  const ids = questions.flatMap(({ id, answers }) => [`question ${id}`, ...answers.map((answer) => answer.id)]);
  if (new Set(ids).size < ids.length) throw new ImportError("A conversation in the file has the same part twice.");
  const branches = Object.entries(given.branches ?? {}).filter(([, id]) => typeof id === "string");
  return {
    id: given.id,
    title: string(given.title),
    titled: time(given.titled),
    created: time(given.created),
    updated: time(given.updated),
    questions,
    branches: Object.fromEntries(branches),
  };
}

function checkedQuestion(given) {
  const answers = list(given?.answers).map(checkedAnswer);
  if (!string(given?.id) || !answers.length) throw new ImportError("A question in the file has no answer.");
  const chosen = Math.min(Math.trunc(count(given.chosen)), answers.length - 1);
  return {
    id: given.id,
    after: string(given.after),
    text: string(given.text),
    answers,
    chosen,
    touched: time(given.touched),
  };
}

function checkedAnswer(given) {
  if (!string(given?.id)) throw new ImportError("An answer in the file has no id.");
  const figures = given.figures && typeof given.figures === "object" ? checkedFigures(given.figures) : null;
  const state = STATES.includes(given.state) ? given.state : "interrupted";
  return {
    id: given.id,
    context: string(given.context),
    model: string(given.model),
    state: state === "complete" && !figures && !string(given.text) ? "interrupted" : state,
    text: string(given.text),
    thoughts: string(given.thoughts),
    thinkingSeconds: count(given.thinkingSeconds),
    seconds: count(given.seconds),
    figures,
    error: string(given.error),
    omitted: count(given.omitted),
    updated: time(given.updated),
  };
}

function checkedFigures(given) {
  const figures = { finish_reason: string(given.finish_reason) };
  for (const [name, value] of Object.entries(given)) if (Number.isFinite(value)) figures[name] = value;
  if (Array.isArray(given.sources)) {
    figures.sources = given.sources.map((source) => ({
      file: string(source?.file),
      heading: string(source?.heading),
      page: source?.page ? count(source.page) : null,
      text: string(source?.text),
      cosine: count(source?.cosine),
    }));
  }
  if (given.probabilities && typeof given.probabilities === "object") {
    const shares = Object.entries(given.probabilities).filter(([, share]) => Number.isFinite(share));
    figures.probabilities = Object.fromEntries(shares);
  }
  return figures;
}

/** Offer a text as a download. */
export function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** A file name from a title. */
export function fileName(title) {
  return title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 60) || "conversation"; // prettier-ignore
}
