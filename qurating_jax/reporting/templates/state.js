// --- the address holds everything that is seen: page, theme, filters, order, what is open ----------------------------

function readState() {
  return new URLSearchParams(location.hash.slice(1));
}

/** Changes the address (null or "" removes a key) and shows what it then says. `replace`: without a step in the history. */
function go(changes, replace = false) {
  const state = readState();
  for (const [key, value] of Object.entries(changes)) {
    if (value === null || value === "" || value === false) state.delete(key);
    else state.set(key, value === true ? "1" : String(value));
  }
  visit(state, replace);
}

function visit(state, replace = false) {
  const hash = "#" + state.toString();
  if (hash !== location.hash) history[replace ? "replaceState" : "pushState"](null, "", hash);
  show();
}

// --- elements and numbers; foreign text becomes a text node, never markup --------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false && child !== ""));
  return node;
}

function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svgEl(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

/** A name whose parts an underscore joins, to be broken behind these. */
function breakable(name) {
  return name.split(/(?<=_)/).flatMap((part, k) => (k ? [el("wbr"), part] : [part]));
}

const counts = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

function shown(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return counts.format(value);
  const size = Math.floor(Math.log10(Math.abs(value)));
  return size < -4 ? value.toExponential(digits - 1) : value.toFixed(Math.max(digits - 1 - size, 0));
}

function shownPercentile(value) {
  return value === null || value === undefined ? "unrated" : `percentile ${value.toFixed(value > 99 || value < 1 ? 1 : 0)}`;
}
