// --- pages ------------------------------------------------------------------------------------------------------------

const root = document.documentElement;
const pages = [...document.querySelectorAll("main > .page")];
const links = [...document.querySelectorAll("nav.pages a")];
const reportTitle = document.title;
const explorers = new Map(); // section -> explorer, made when its page is first seen
const left = new Map(); // page -> the state it was left in, for when somebody comes back through the navigation
let current = null;
for (const page of pages) page.removeAttribute("id"); // the place that links lead to where no script runs

function show() {
  const state = readState();
  const page = pages.find((one) => one.dataset.page === state.get("page")) ?? pages[0];
  if (!page) return;
  if (page !== current) {
    for (const one of pages) one.classList.toggle("current", one === page);
    for (const link of links) {
      if (link.dataset.page === page.dataset.page) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    const link = links.find((one) => one.dataset.page === page.dataset.page);
    const bar = link.closest("ul");
    bar.scrollLeft = link.offsetLeft - bar.offsetLeft - 40;
    if (current) scrollTo(0, 0);
    current = page;
    document.title = `${page.querySelector("h2").textContent} · ${reportTitle}`;
  }
  left.set(page.dataset.page, state.toString());
  showTheme(state.get("theme"));
  if (document.readyState === "loading") return; // the data stand at the end of the file
  [...page.querySelectorAll(".explorer")].forEach((section, index) => {
    if (!explorers.has(section)) explorers.set(section, makeExplorer(section, index));
    explorers.get(section).update(state);
  });
}

function visitPage(name) {
  const state = new URLSearchParams(left.get(name) ?? "");
  const theme = readState().get("theme");
  state.set("page", name);
  if (theme) state.set("theme", theme);
  else state.delete("theme");
  visit(state);
}

function makeExplorer(section, index) {
  const data = JSON.parse(document.getElementById(`data-${section.dataset.number}`).textContent);
  const make = section.dataset.kind === "documents" ? documentsExplorer : pairsExplorer;
  return explorer(section.querySelector(".live"), make(data), index);
}

// --- theme ------------------------------------------------------------------------------------------------------------

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches;
}

function showTheme(theme) {
  if (theme === "dark" || theme === "light") root.dataset.theme = theme;
  else delete root.dataset.theme;
  themeButton.textContent = isDark() ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", isDark() ? "Light colours" : "Dark colours");
}

// --- tables: a heading sorts its column -------------------------------------------------------------------------------

/** The headings of the columns; a line above them may name groups of columns. */
const headingsOf = (table) => [...[...table.tHead.rows].at(-1).cells];

function makeSortable(table) {
  headingsOf(table).forEach((heading, column) => {
    const name = heading.dataset.name || "name";
    const button = el("button", { type: "button", "aria-label": `Sort by ${name}`, onclick: () => sortBy(table, column) });
    button.append(...heading.childNodes);
    if (!button.textContent.trim()) button.append("·");
    heading.append(button);
  });
}

function sortBy(table, column) {
  const headings = headingsOf(table);
  const isNumber = headings[column].classList.contains("number");
  const before = headings[column].getAttribute("aria-sort");
  const direction = before ? (before === "descending" ? 1 : -1) : isNumber ? -1 : 1;
  headings.forEach((heading) => heading.removeAttribute("aria-sort"));
  headings[column].setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows].map((row) => {
    const cell = row.cells[column];
    const key = isNumber ? (cell.dataset.key === "" ? null : Number(cell.dataset.key)) : cell.textContent;
    return { row, key };
  });
  rows.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null); // gaps stay last
    return direction * (isNumber ? a.key - b.key : a.key.localeCompare(b.key, "en"));
  });
  table.tBodies[0].append(...rows.map(({ row }) => row));
}

// --- verdicts: the sentence behind one, where one looks ---------------------------------------------------------------

function makeVerdicts(table) {
  const block = table.parentElement;
  const why = block.querySelector(".why");
  let shown = null; // the button that the sentence belongs to
  const hide = () => {
    shown?.removeAttribute("aria-expanded");
    shown = null;
    why.hidden = true;
  };
  const tell = (button) => {
    hide();
    shown = button;
    button.setAttribute("aria-expanded", "true");
    const sentence = document.getElementById(button.getAttribute("aria-describedby"));
    const head = sentence.parentElement.querySelector("strong").cloneNode(true);
    why.replaceChildren(head, el("span", { dir: "auto" }, sentence.textContent));
    why.hidden = false;
    const [at, frame] = [button.getBoundingClientRect(), block.getBoundingClientRect()];
    why.style.left = `${Math.max(Math.min(at.left - frame.left, frame.width - why.offsetWidth), 0)}px`;
    why.style.top = `${at.bottom - frame.top + 6}px`;
  };
  for (const button of table.querySelectorAll(".verdict")) {
    button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && tell(button));
    button.addEventListener("focus", () => tell(button));
    button.addEventListener("click", () => tell(button));
    button.addEventListener("blur", hide);
  }
  block.addEventListener("pointerleave", () => shown !== document.activeElement && hide());
  block.addEventListener("keydown", (event) => event.key === "Escape" && hide());
}

// --- keys -------------------------------------------------------------------------------------------------------------

const help = document.getElementById("help");

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  const isTyping = event.target.closest("input, select, textarea") !== null;
  const active = current && explorers.get(current.querySelector(".explorer"));
  if (event.key === "Escape") {
    if (isTyping) event.target.blur();
    else if (active) active.close();
  } else if (isTyping) {
    return;
  } else if (event.key === "?") {
    help.showModal();
  } else if (active && event.key === "/") {
    active.search();
  } else if (active && (event.key === "j" || event.key === "k")) {
    active.step(event.key === "j" ? 1 : -1);
  } else if (active && event.key === "Enter" && event.target.closest("button, a, summary") === null) {
    active.openCursor();
  } else {
    return;
  }
  event.preventDefault();
}
