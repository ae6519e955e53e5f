/** Markdown of a model as DOM. HTML in it stays text, images become links, and links lead to other sites only. */

import "./vendor/markdown-it.umd.min.js"; // defines globalThis.markdownit
import DOMPurify from "./vendor/purify.es.mjs";
import { calls, showCall } from "./calls.js";
import { CodeBlock } from "./code.js";

const LINK = /^(?:https?:\/\/|mailto:)/i;
const HEADING_BELOW = 2; // levels of the page above an answer
const DIRECTED = new Set(["paragraph", "heading", "bullet_list", "ordered_list", "blockquote"]);
const ALLOWED = {
  ALLOWED_TAGS: ["p", "br", "hr", "h3", "h4", "h5", "h6", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol",
    "li", "table", "thead", "tbody", "tr", "th", "td", "a"], // prettier-ignore
  ALLOWED_ATTR: ["href", "class", "start", "dir"],
  ALLOWED_URI_REGEXP: LINK,
  ADD_URI_SAFE_ATTR: ["dir", "start"], // no addresses
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const parser = globalThis.markdownit({ html: false, linkify: true, breaks: true });
parser.validateLink = (url) => LINK.test(url);
parser.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
parser.use(calls);
parser.core.ruler.push("page", fitIntoPage);
parser.renderer.rules.image = ([...tokens], index) => {
  const { escapeHtml } = parser.utils;
  const address = tokens[index].attrGet("src");
  return `<a href="${escapeHtml(address)}">${escapeHtml(tokens[index].content || address)}</a>`;
};

/** Lower headings below the page's own, let each block have its direction, and replace inline styles. */
function fitIntoPage({ tokens }) {
  for (const token of tokens) {
    const [, kind, side] = token.type.match(/^(.*)_(open|close)$/) ?? [];
    if (kind === "heading") token.tag = `h${Math.min(6, Number(token.tag[1]) + HEADING_BELOW)}`;
    if (side !== "open") continue;
    const alignment = token.attrGet("style")?.match(/center|right/)?.[0];
    token.attrs = (token.attrs ?? []).filter(([name]) => name !== "style");
    if (alignment) token.attrSet("class", alignment);
    // Only outermost blocks: one with a direction is skipped when that of the block around it is found.
    if ((token.level === 0 && DIRECTED.has(kind)) || kind === "th" || kind === "td") token.attrSet("dir", "auto");
  }
}

/** Parse Markdown into tokens of markdown-it. */
export function parse(text) {
  return parser.parse(text, {});
}

/** Tokens of markdown-it as DOM. */
export function render(tokens) {
  const fragment = DOMPurify.sanitize(parser.renderer.render(tokens, parser.options, {}), ALLOWED);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const code of fragment.querySelectorAll("pre > code")) {
    const language = /\blanguage-(\S+)/.exec(code.className)?.[1] ?? "";
    code.parentElement.replaceWith(blockOf(language, code.textContent));
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "table";
    frame.tabIndex = 0; // scrolls by keyboard
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}

function blockOf(language, text) {
  if (language === "tool-call") return showCall(text);
  const block = new CodeBlock(language);
  block.append(text);
  block.finish();
  return block.element;
}
