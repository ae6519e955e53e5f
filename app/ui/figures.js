/** Figures of an answer as words. */

const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const percent = new Intl.NumberFormat("en", { style: "percent" });
const integer = new Intl.NumberFormat("en");

/** For example "1 token" or "42 tokens". */
export function tokens(count) {
  return counted(count, "token");
}

/** For example "1 turn" or "1,200 turns". */
export function counted(count, noun) {
  return `${integer.format(count)} ${noun}${count === 1 ? "" : "s"}`;
}

export function duration(seconds) {
  return seconds < 1 ? `${Math.round(seconds * 1000)}\u00a0ms` : `${number.format(seconds)}\u00a0s`;
}

/** The line under a finished answer. */
export function figuresLine(context, figures) {
  const { generated_tokens: count, tokens_per_second: speed, time_to_first_token: first } = figures;
  const { prompt_tokens: prompt, cached_tokens: cached, sources_waiting: waiting, label_mass: mass } = figures;
  const parts = [context];
  if (count !== undefined) parts.push(tokens(count));
  if (speed > 0) parts.push(`${number.format(speed)} tokens/s`);
  if (first > 0) parts.push(`first after ${duration(first)}`);
  if (prompt > 0) parts.push(`prompt ${integer.format(prompt)}, cached ${integer.format(cached ?? 0)}`);
  if (mass !== undefined) parts.push(`choices have ${percent.format(mass)} of the probability`);
  if (waiting) parts.push(`${counted(waiting, "document")} not indexed yet`);
  return parts.join(" · ");
}

/** Figures of a finished answer, for screen readers. */
export function spokenFigures(figures) {
  const speed = figures.tokens_per_second;
  const parts = [tokens(figures.generated_tokens)];
  if (speed > 0) parts.push(`${number.format(speed)} tokens per second`);
  if (figures.sources) parts.push(counted(figures.sources.length, "source"));
  return parts.join(", ");
}
