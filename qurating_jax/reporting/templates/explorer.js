// --- an explorer: filters, a paged list, and a reader for the row that is open ---------------------------------------
// `spec` says what there is to see:
//   noun      what the rows are, for the count
//   length    how many rows
//   filters   [{ key, label, kind: "search" | "select" | "number" | "check", options: [[value, text]] }]
//   orders    [[value, text, (row) => number or null]]; the first is the order of the list itself
//   matcher   (get) => (row) => boolean; `get(key)` is a filter's value in the address
//   columns   (get) => [{ label, kind: "" | "number" | "wide", minor, cell: (row) => children }]
//   read      (row, get) => children of the reader;  title: (row) => its heading;  isStacked: reader above the list
//   actions   (row) => buttons of the reader

const ROWS_A_PAGE = 50;

function explorer(place, spec, index) {
  const keyOf = (name) => (index ? `${name}${index + 1}` : name); // a second explorer of a page has its own keys
  let state = readState();
  const get = (name) => state.get(keyOf(name)) ?? "";
  const set = (changes, replace) =>
    go(Object.fromEntries(Object.entries(changes).map(([name, value]) => [keyOf(name), value])), replace);

  const inputs = new Map();
  const filters = el("div", { class: "filters", role: "search", "aria-label": `Filter ${spec.noun}` });
  for (const filter of spec.filters) {
    const input = makeInput(filter, (value, replace) => set({ [filter.key]: value, p: null }, replace));
    inputs.set(filter.key, input);
    filters.append(makeField(filter.label, input));
  }
  const orders = spec.orders.map(([value, text]) => [value, text]);
  const order = makeInput({ kind: "select", options: orders }, (value) => set({ sort: value, order: null, p: null }));
  inputs.set("sort", order);
  const turn = el("button", { type: "button", onclick: () => set({ order: get("order") === "asc" ? null : "asc", p: null }) });
  const clear = el("button", { type: "button", class: "quiet", onclick: () => set(clearing()) }, "Clear");
  filters.append(makeField("Order", order), turn, clear);
  const clearing = () => Object.fromEntries([...inputs.keys(), "order", "p"].map((key) => [key, null]));

  const count = el("p", { class: "count", role: "status" });
  const where = el("span", { class: "faint" });
  const previous = el("button", { type: "button", onclick: () => turnTo(pageNumber() - 1) }, "Previous");
  const next = el("button", { type: "button", onclick: () => turnTo(pageNumber() + 1) }, "Next");
  const list = el("div", { class: "list" });
  const panes = el("div", { class: spec.isStacked ? "panes stacked" : "panes" }, list);
  const pager = el("div", { class: "pager" }, previous, where, next);
  const key = (name) => el("kbd", {}, name);
  const hints = el("p", { class: "hints" }, key("j"), " ", key("k"), " next and previous · ", key("Enter"), " open · ",
    key("Esc"), " close · ", spec.filters[0]?.kind === "search" ? [key("/"), " search · "] : null, key("?"), " all keys");
  place.replaceChildren(filters, el("div", { class: "status" }, count, pager), hints, panes);

  let rows = [];
  let filtered = null; // the part of the address that `rows` were found by
  let cursor = -1; // place in `rows`
  let reader = null;
  let drawn = null; // the part of the address that the list was drawn by
  const turnTo = (page) => set({ p: page > 1 ? page : null });
  const numPages = () => Math.max(Math.ceil(rows.length / ROWS_A_PAGE), 1);
  const pageNumber = () => Math.min(Math.max(Math.trunc(Number(get("p"))) || 1, 1), numPages());
  const opened = () => {
    const row = get("open") === "" ? NaN : Number(get("open"));
    return Number.isInteger(row) && row >= 0 && row < spec.length ? row : -1;
  };

  function find() {
    const key = [...inputs.keys(), "order"].map(get).join("\u0000");
    if (key === filtered) return;
    filtered = key;
    const matches = spec.matcher(get);
    rows = Array.from({ length: spec.length }, (_, row) => row).filter(matches);
    const value = (spec.orders.find(([name]) => name === get("sort")) ?? spec.orders[0])[2];
    if (value || get("order") === "asc") {
      const keys = new Map(rows.map((row) => [row, value ? value(row) : -row]));
      const direction = get("order") === "asc" ? 1 : -1;
      rows.sort((a, b) => {
        const [x, y] = [keys.get(a) ?? null, keys.get(b) ?? null];
        if (x === null || y === null) return (x === null) - (y === null) || a - b; // unrated rows stay last
        return direction * (x - y) || a - b;
      });
    }
    cursor = -1;
    drawn = null;
  }

  function drawList() {
    const page = pageNumber();
    const start = (page - 1) * ROWS_A_PAGE;
    const key = `${filtered}\u0000${page}`;
    if (key !== drawn) {
      drawn = key;
      const columns = spec.columns(get);
      const classes = (column) => [column.kind, column.minor ? "minor" : ""].join(" ").trim() || null;
      const head = columns.map((column) => el("th", { scope: "col", class: classes(column) }, column.label));
      const body = rows.slice(start, start + ROWS_A_PAGE).map((row, offset) =>
        el("tr", { "data-row": row, "data-place": start + offset, onclick: () => open(row) },
          columns.map((column) => el("td", { class: classes(column) }, column.cell(row)))));
      list.replaceChildren(rows.length
        ? el("table", { "aria-label": spec.noun }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body))
        : el("p", { class: "note" }, `No ${spec.noun} match these filters.`));
      where.textContent = rows.length
        ? `${shown(start + 1)} to ${shown(Math.min(start + ROWS_A_PAGE, rows.length))} of ${shown(rows.length)}` : "";
      previous.disabled = page <= 1;
      next.disabled = page >= numPages();
      pager.hidden = rows.length <= ROWS_A_PAGE;
    }
    count.textContent = `${shown(rows.length)} of ${shown(spec.length)} ${spec.noun} match`;
    for (const line of list.querySelectorAll("tbody tr")) {
      line.classList.toggle("cursor", Number(line.dataset.place) === cursor);
      if (Number(line.dataset.row) === opened()) line.setAttribute("aria-current", "true");
      else line.removeAttribute("aria-current");
    }
  }

  function drawReader() {
    const row = opened();
    panes.classList.toggle("split", row >= 0);
    if (row < 0) {
      reader?.remove();
      reader = null;
      return;
    }
    const key = `${row}\u0000${filtered}`;
    if (reader?.dataset.key === key) return;
    const at = rows.indexOf(row);
    const button = (text, to, more = {}) =>
      el("button", { type: "button", disabled: to < 0 || to >= rows.length, onclick: () => open(rows[to], false), ...more }, text);
    const made = el("article", { class: "reader", "data-key": key, "aria-label": spec.title(row) },
      el("div", { class: "bar-row" }, button("Previous", at < 0 ? -1 : at - 1), button("Next", at < 0 ? -1 : at + 1),
        spec.actions(row), copyButton(linkTo(row), "Copy link"), el("button", { type: "button", class: "close", onclick: close }, "Close")),
      el("h3", { tabindex: "-1", dir: "auto" }, spec.title(row)), spec.read(row, get));
    if (reader) reader.replaceWith(made);
    else panes.append(made);
    reader = made;
    if (at >= 0) cursor = at;
  }

  /** The address of a row, without filters and order. */
  function linkTo(row) {
    const only = new URLSearchParams({ page: state.get("page") ?? "", [keyOf("open")]: row });
    return `${location.href.split("#")[0]}#${only}`;
  }

  function update(to) {
    state = to;
    for (const [key, input] of inputs) {
      if (input.type === "checkbox") input.checked = get(key) === "1";
      else if (input.value !== get(key)) input.value = get(key);
    }
    turn.textContent = get("order") === "asc" ? "Ascending ↑" : "Descending ↓";
    clear.hidden = [...inputs.keys(), "order"].every((key) => get(key) === "");
    find();
    drawReader();
    drawList();
  }

  /** Opens a row, and turns the list to the page that it is on. */
  function open(row, withFocus = true) {
    const at = rows.indexOf(row);
    const page = at < 0 ? pageNumber() : Math.floor(at / ROWS_A_PAGE) + 1;
    set({ open: row, p: page > 1 ? page : null }, opened() >= 0);
    if (withFocus) reader.querySelector("h3").focus({ preventScroll: !spec.isStacked });
  }

  function close() {
    const row = opened();
    if (row < 0) return;
    set({ open: null });
    list.querySelector(`tr[data-row="${row}"] .open`)?.focus();
  }

  function step(by) {
    if (!rows.length) return;
    const at = opened() >= 0 ? rows.indexOf(opened()) : cursor < 0 ? (pageNumber() - 1) * ROWS_A_PAGE - 1 : cursor;
    cursor = Math.min(Math.max(at + by, 0), rows.length - 1);
    const page = Math.floor(cursor / ROWS_A_PAGE) + 1;
    if (opened() >= 0) open(rows[cursor], false);
    else if (page !== pageNumber()) set({ p: page > 1 ? page : null }, true);
    else drawList();
    list.querySelector("tr.cursor")?.scrollIntoView({ block: "nearest" });
  }

  const openCursor = () => cursor >= 0 && open(rows[cursor]);
  return { update, close, step, openCursor, search: () => inputs.get("q")?.focus() };
}

function makeInput(filter, change) {
  if (filter.kind === "select") {
    return el("select", { onchange: (event) => change(event.target.value) },
      filter.options.map(([value, text]) => el("option", { value }, text)));
  }
  if (filter.kind === "check") return el("input", { type: "checkbox", onchange: (event) => change(event.target.checked) });
  const bounds = filter.kind === "number" ? { min: 0, max: 100, placeholder: filter.placeholder } : { autocomplete: "off", spellcheck: "false" };
  return el("input", { type: filter.kind, ...bounds, oninput: (event) => change(event.target.value, true) });
}

let numFields = 0;

function makeField(name, input) {
  input.id = `field-${(numFields += 1)}`;
  const isCheck = input.type === "checkbox";
  const label = el("label", { for: input.id }, name);
  return el("div", { class: isCheck ? "field check" : "field" }, isCheck ? [input, label] : [label, input]);
}

/** True of rows whose texts hold `words`, whatever the case; the small letters are made once. */
function textMatcher(columns, length) {
  let small = null;
  return (words) => {
    const wanted = words.toLowerCase();
    if (!wanted) return null;
    small ??= Array.from({ length }, (_, row) => columns.map((column) => column[row]).join("\n").toLowerCase());
    return (row) => small[row].includes(wanted);
  };
}

/** The text in a box of its own direction, the first thousand places of `words` marked. */
function textBox(text, words) {
  const isEndless = text.length > 50000 && text.split("\n").some((line) => line.length > 50000);
  const box = el("div", { class: isEndless ? "text endless" : "text", dir: "auto" });
  const wanted = words.toLowerCase();
  const small = wanted ? text.toLowerCase() : "";
  if (!wanted || small.length !== text.length) return fill(box, {}, [text]);
  let from = 0;
  for (let found = small.indexOf(wanted), num = 0; found >= 0 && num < 1000; num += 1) {
    box.append(text.slice(from, found), el("mark", {}, text.slice(found, found + wanted.length)));
    from = found + wanted.length;
    found = small.indexOf(wanted, from);
  }
  box.append(text.slice(from));
  return box;
}

function copyButton(text, name) {
  const button = el("button", { type: "button" }, name);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      const field = el("input", { class: "copied", readonly: true, value: text, "aria-label": name });
      button.replaceWith(field); // for the person to copy
      field.select();
    }
  });
  return button;
}
