/** Two tabs can change one conversation. Its versions are merged by turn, and the later change of a field is kept. */

/**
 * Merge another version of a conversation into one. Its turns stay the same objects.
 *
 * @param {Conversation} conversation
 * @param {Conversation} other
 */
export function merge(conversation, other) {
  if (time(other.titled) > time(conversation.titled)) {
    conversation.title = other.title;
    conversation.titled = other.titled;
  }
  conversation.title ||= other.title;
  conversation.updated = Math.max(conversation.updated, other.updated);
  const questions = byId(conversation.questions);
  for (const question of other.questions) {
    if (questions.has(question.id)) mergeQuestion(questions.get(question.id), question);
    else conversation.questions.push(question);
  }
  mergeBranches(conversation, other);
}

function mergeQuestion(question, other) {
  const answers = byId(question.answers);
  for (const answer of other.answers) {
    const own = answers.get(answer.id);
    if (!own) question.answers.push(answer);
    else if (time(answer.updated) > time(own.updated)) Object.assign(own, answer);
  }
  if (time(other.touched) <= time(question.touched)) return;
  const chosen = other.answers[other.chosen].id;
  question.chosen = question.answers.findIndex(({ id }) => id === chosen);
  question.touched = other.touched;
}

/** The version of a question that was chosen last is shown. */
function mergeBranches(conversation, other) {
  const questions = byId(conversation.questions);
  const chosenAt = (id) => time(questions.get(id)?.touched);
  for (const [after, id] of Object.entries(other.branches)) {
    const own = conversation.branches[after];
    if (!own || chosenAt(id) > chosenAt(own)) conversation.branches[after] = id;
  }
}

function byId(items) {
  return new Map(items.map((item) => [item.id, item]));
}

/** Conversations of earlier versions of this page have no times. */
function time(value) {
  return value ?? 0;
}
