/**
 * A conversation as plain data, which can be stored.
 *
 * It is a tree. A question follows an answer, or the start of the conversation. Edited questions follow the same
 * answer, and a question has all its answers. The chosen ones are the path that the page shows.
 *
 * @typedef {{id: string, context: string, model: string, state: State, text: string, thoughts: string, thinkingSeconds: number,
 *   seconds: number, figures: ?object, error: string, omitted: number, updated: number}} Answer
 * @typedef {"running"|"complete"|"stopped"|"failed"|"interrupted"|"elsewhere"} State elsewhere: runs in another tab
 * @typedef {{id: string, after: string, text: string, answers: Answer[], chosen: number, touched: number}} Question
 *   touched: time of the last choice of it, or of one of its answers
 * @typedef {{question: Question, answer: Answer, versions: Question[]}} Turn
 * @typedef {{id: string, title: string, titled: number, created: number, updated: number, questions: Question[],
 *   branches: Object<string, string>}} Conversation titled: time of the last change of the title by hand
 */

const START = "";
const TITLE_CHARACTERS = 60;

function newId() {
  // crypto.randomUUID() does not exist over plain HTTP from another host.
  return Array.from(crypto.getRandomValues(new Uint8Array(10)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @returns {Conversation} */
export function newConversation() {
  const now = Date.now();
  return { id: newId(), title: "", titled: 0, created: now, updated: now, questions: [], branches: {} };
}

/** @returns {Answer} */
function newAnswer(context) {
  return {
    id: newId(),
    context,
    model: "", // chosen by name; empty: the server's choice
    state: "running",
    text: "",
    thoughts: "",
    thinkingSeconds: 0,
    seconds: 0,
    figures: null,
    error: "",
    omitted: 0,
    updated: Date.now(),
  };
}

/** The chosen turns, oldest first. */
export function path(conversation) {
  const following = new Map();
  for (const question of conversation.questions) {
    if (!following.has(question.after)) following.set(question.after, []);
    following.get(question.after).push(question);
  }
  const turns = [];
  for (let after = START; following.has(after); after = turns.at(-1).answer.id) {
    const versions = following.get(after);
    const question = versions.find(({ id }) => id === conversation.branches[after]) ?? versions.at(-1);
    turns.push({ question, answer: question.answers[question.chosen], versions });
  }
  return turns;
}

/** Add a question after an answer, or at the start, with an empty answer, and choose it. */
export function addQuestion(conversation, text, after, context) {
  const answers = [newAnswer(context)];
  const question = { id: newId(), after: after ?? START, text, answers, chosen: 0, touched: Date.now() };
  conversation.title ||= titleOf(text);
  conversation.questions.push(question);
  conversation.branches[question.after] = question.id;
}

/** Add an empty answer to a question, and choose it. */
export function addAnswer(question, context) {
  question.answers.push(newAnswer(context));
  chooseAnswer(question, question.answers.length - 1);
}

/** Choose another answer of a question. */
export function chooseAnswer(question, index) {
  question.chosen = index;
  question.touched = Date.now();
}

/** Empty an answer for another attempt. */
export function resetAnswer(answer, context) {
  Object.assign(answer, newAnswer(context), { id: answer.id });
}

/** Choose another version of a question. */
export function chooseVersion(conversation, question) {
  conversation.branches[question.after] = question.id;
  question.touched = Date.now();
}

/** Change the title by hand. */
export function rename(conversation, title) {
  conversation.title = title;
  conversation.titled = Date.now();
}

/** The first words of a question. */
export function titleOf(text) {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length <= TITLE_CHARACTERS ? line : `${line.slice(0, TITLE_CHARACTERS).trimEnd()}…`;
}
