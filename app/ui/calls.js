/** Tool calls in an answer: JSON between <tool_call> and </tool_call>, as many chat templates ask for. */

const BEGIN = "<tool_call>";
const END = "</tool_call>";

/** A block rule of markdown-it. The call becomes a block of code with the language "tool-call". */
export function calls(parser) {
  parser.block.ruler.before("fence", "tool_call", (state, startLine, endLine, silent) => {
    const lineOf = (line) => state.src.slice(state.bMarks[line] + state.tShift[line], state.eMarks[line]);
    if (!lineOf(startLine).startsWith(BEGIN)) return false;
    if (silent) return true;
    let line = startLine;
    while (line < endLine - 1 && !lineOf(line).includes(END)) line += 1;
    const text = state.getLines(startLine, line + 1, 0, false).trim();
    const token = state.push("fence", "code", 0);
    token.info = "tool-call";
    token.content = text.slice(BEGIN.length).split(END)[0].trim();
    token.map = [startLine, line + 1];
    token.markup = BEGIN;
    token.block = true;
    state.line = line + 1;
    return true;
  }, { alt: ["paragraph"] });
}

/** A call with its name and arguments; incomplete JSON is shown as it is. */
export function showCall(text) {
  const card = document.getElementById("call").content.firstElementChild.cloneNode(true);
  const list = card.querySelector("dl");
  const call = parsed(text);
  card.querySelector(".name").textContent = call?.name ?? "…";
  if (!call) {
    list.replaceWith(Object.assign(document.createElement("pre"), { textContent: text, tabIndex: 0 }));
    return card;
  }
  for (const [name, value] of Object.entries(call.arguments)) {
    const [term, description] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    description.textContent = typeof value === "string" ? value : JSON.stringify(value);
    list.append(term, description);
  }
  return card;
}

function parsed(text) {
  try {
    const { name, arguments: values, parameters } = JSON.parse(text);
    const given = values ?? parameters ?? {};
    return typeof name === "string" && typeof given === "object" ? { name, arguments: given } : null;
  } catch {
    return null; // not complete, or not JSON
  }
}
