/** Probabilities of an answer that is one of several choices, as bars. */

const MOST_SHOWN = 12;
const percent = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });

/**
 * Show the choices of an answer, the most likely first.
 *
 * @param {HTMLElement} list
 * @param {?Object<string, number>} probabilities
 */
export function showChoices(list, probabilities) {
  const sorted = Object.entries(probabilities ?? {}).sort(([, one], [, other]) => other - one);
  list.replaceChildren(...sorted.slice(0, MOST_SHOWN).map(([name, share]) => bar(name, share)));
  list.hidden = !sorted.length;
}

function bar(name, share) {
  const item = document.getElementById("choice").content.firstElementChild.cloneNode(true);
  item.querySelector(".name").textContent = name;
  item.querySelector("meter").value = share;
  item.querySelector(".share").textContent = percent.format(share);
  return item;
}
