/** Retrieved passages of an answer, each on an expandable card. Inserted as text, never as HTML. */

const percent = new Intl.NumberFormat("en", { style: "percent" });

/**
 * Show the sources of an answer.
 *
 * @param {HTMLElement} section
 * @param {{file: string, heading: string, page: ?number, text: string, cosine: number}[]} sources
 *   best first
 */
export function showSources(section, sources) {
  section.querySelector("ul").replaceChildren(...sources.map(card));
  section.hidden = false;
}

function card({ file, heading, page, text, cosine }) {
  const item = document.getElementById("source").content.firstElementChild.cloneNode(true);
  const fill = (selector, content) => (item.querySelector(selector).textContent = content);
  fill(".file", file);
  fill(".where", [heading, page && `page ${page}`].filter(Boolean).join(", "));
  const similarity = Math.max(cosine, 0);
  item.querySelector("meter").value = similarity;
  fill(".percent", `${percent.format(similarity)} similar`);
  fill(".passage", text);
  return item;
}
