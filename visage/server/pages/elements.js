// Elements, numbers and curves that both pages share. Nothing is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element with properties, attributes (`attributes`) and children (nodes or texts). */
export function html(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  const { attributes = {}, ...rest } = properties;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  Object.assign(element, rest);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** An SVG element with attributes and children. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A number with a fixed number of digits; a dash for none. */
export function fixed(value, digits = 0) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return value.toLocaleString("en-GB", {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
}

/** A share from 0 to 1 in per cent. */
export function percent(share, digits = 1) {
  return share === null || share === undefined ? "–" : `${fixed(100 * share, digits)} %`;
}

/** The digits that a label grid's step needs. */
export function digitsOf(step) {
  return Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
}

/** Round numbers from `low` to `high`, about `count` of them. */
export function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + 1e-9; tick += step) found.push(tick);
  return found;
}

/** The JSON of a page of this server. An Error with its sentence where it refuses. */
export async function read(address, options = {}) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Refused("The server does not answer. Is it still running?", 0, null);
  }
  const document = await response.json().catch(() => null);
  if (response.ok && document !== null) return document;

  const sentence = document?.error ?? `The server answered with status ${response.status}.`;
  throw new Refused(sentence, response.status, response.headers.get("retry-after"));
}

/** A refusal: the server's sentence, its status, and the seconds after which to try again. */
export class Refused extends Error {
  constructor(sentence, status, retryAfter) {
    super(sentence);
    this.status = status;
    this.retryAfter = retryAfter === null ? null : Number(retryAfter);
  }
}

/** A sentence with a capital at its start and a full stop at its end. */
export function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
