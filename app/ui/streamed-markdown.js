/**
 * Markdown that arrives in pieces.
 *
 * Finished blocks stay as they are. Only the last block is parsed and rendered again, at most once per frame. Code is
 * appended without parsing. So the work grows with the length of the answer, not with its square.
 */

import { CodeBlock } from "./code.js";
import { parse, render } from "./markdown.js";

// An end that may still become another kind of block: shown when that is decided. It is a line of marks only, or the
// first line of a table without its complete second line.
const MARKS = /(?:^|\n)(?:[-=*+_#>~`|: \t]+|[ \t]*\d{1,9}[.)]?[ \t]*|[ \t]*<\/?[a-z_]*)$/;
const TABLE_BEGIN = /(?:^|(?<!(?:^|\n)[ \t]*\|[^\n]*)\n)[ \t]*\|[^\n]*(?:\n[-:| \t]*)?$/;
const PAUSE = 20; // a large block is rendered again after this many times the duration of its last rendering
const HAS_REFERENCE = /^ {0,3}\[[^\]\n]+\]:/m; // links defined elsewhere

export class StreamedMarkdown {
  #container;
  #text = "";
  #start = 0; // of the open block
  #open = []; // nodes of the open block
  #code = null; // an open block of code
  #frame = 0;
  #notBefore = 0;
  onShown;

  /** Number of characters that the parser has read. */
  parsed = 0;

  /**
   * @param {HTMLElement} container
   * @param {() => void} onShown called after each rendering
   */
  constructor(container, onShown = () => {}) {
    this.#container = container;
    this.onShown = onShown;
    container.replaceChildren();
  }

  append(piece) {
    this.#text += piece.replaceAll("\r", "");
    this.#frame ||= requestAnimationFrame(() => this.#onFrame());
  }

  /** Show everything; the answer has ended. */
  finish() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    if (HAS_REFERENCE.test(this.#text)) {
      this.#reset();
    }
    this.show(true);
  }

  #reset() {
    this.#start = 0;
    this.#open = [];
    this.#code = null;
    this.#container.replaceChildren();
  }

  #onFrame() {
    this.#frame = 0;
    if (performance.now() < this.#notBefore) {
      this.#frame = requestAnimationFrame(() => this.#onFrame());
      return;
    }
    this.show(false);
    this.onShown();
  }

  /** Show the received text; `isComplete`: no more follows. */
  show(isComplete) {
    const begin = performance.now();
    while (this.#code === null || this.#continueCode(isComplete)) {
      if (!this.#showBlocks(isComplete)) break;
    }
    this.#notBefore = performance.now() + PAUSE * (performance.now() - begin) - 1000 / 60;
  }

  /** Show the open block and those that follow it; returns whether the last one is code, which is continued. */
  #showBlocks(isComplete) {
    let tail = this.#text.slice(this.#start);
    if (!isComplete) tail = tail.replace(TABLE_BEGIN, "").replace(MARKS, "");
    const tokens = parse(tail);
    this.parsed += tail.length;
    const last = tokens.findLastIndex((token) => token.level === 0 && token.nesting >= 0);
    for (const node of this.#open) node.remove();
    this.#open = [];
    if (last < 0) return false;
    const opened = tokens[last];
    if (last > 0) this.#container.append(render(tokens.slice(0, last)));
    this.#start += offsetOf(tail, opened.map[0]);
    if (!isComplete && opened.type === "fence" && this.#beginCode(opened)) return true;
    const fragment = render(tokens.slice(last));
    this.#open = [...fragment.childNodes];
    this.#container.append(fragment);
    return false;
  }

  // Code

  #beginCode({ markup, info }) {
    const lineEnd = this.#text.indexOf("\n", this.#start);
    if (lineEnd < 0 || !this.#text.startsWith(markup, this.#start)) return false; // the language is not complete
    const block = new CodeBlock(info.trim().split(/\s+/)[0]);
    this.#container.append(block.element);
    const [mark] = markup;
    this.#code = {
      block,
      line: lineEnd + 1,
      shown: lineEnd + 1,
      closing: new RegExp(`^ {0,3}\\${mark}{${markup.length},}[ \\t]*$`),
      mayClose: new RegExp(`^ {0,3}\\${mark}*[ \\t]*$`),
    };
    return true;
  }

  /** Append code; returns whether the block has ended and text may follow. */
  #continueCode(isComplete) {
    const code = this.#code;
    const text = this.#text;
    for (;;) {
      const end = text.indexOf("\n", code.shown);
      const line = text.slice(code.line, end < 0 ? undefined : end);
      const isLast = end < 0;
      if (code.closing.test(line) && (!isLast || isComplete)) {
        this.#endCode(isLast ? text.length : end + 1);
        return true;
      }
      const next = isLast ? text.length : end + 1;
      if (!isLast || isComplete || !code.mayClose.test(line)) {
        code.block.append(text.slice(code.shown, next));
        code.shown = next;
      }
      if (isLast) {
        if (isComplete) this.#endCode(text.length);
        return isComplete;
      }
      code.line = next;
    }
  }

  #endCode(start) {
    this.#code.block.finish();
    this.#code = null;
    this.#start = start;
  }
}

function offsetOf(text, line) {
  let offset = 0;
  for (let i = 0; i < line; i++) offset = text.indexOf("\n", offset) + 1;
  return offset;
}
