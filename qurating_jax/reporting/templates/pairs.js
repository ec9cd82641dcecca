// --- judged pairs; every p is the probability that the second text is the better one ---------------------------------

function pairsExplorer(data) {
  const hasTexts = Boolean(data.firstText);
  const find = hasTexts ? textMatcher([data.firstId, data.firstText, data.secondId, data.secondText], data.length) : null;
  const average = data.forward.map((forward, row) => {
    const given = [forward, data.backward[row]].filter((p) => p !== null);
    return given.length ? given.reduce((sum, p) => sum + p, 0) / given.length : null;
  });
  const both = (a, b, then) => (a === null || b === null ? null : then(a, b));
  const gap = (row) => both(average[row], data.rater[row], (a, b) => Math.abs(a - b));
  const turn = (row) => both(data.forward[row], data.backward[row], (a, b) => Math.abs(a - b));
  const disagrees = (row) => both(average[row], data.rater[row], (a, b) => (a - 0.5) * (b - 0.5) < 0) === true;
  const flips = (row) => both(data.forward[row], data.backward[row], (a, b) => (a - 0.5) * (b - 0.5) < 0) === true;
  const named = (names, none) => [["", "all"], ...names.map((name, k) => [String(k), name || none])];
  const domain = (k) => data.domains[k] || "no domain";

  const filters = [
    hasTexts && { key: "q", label: "Search in texts and ids", kind: "search" },
    data.criteria.length > 1 && { key: "criterion", label: "Criterion", kind: "select", options: named(data.criteria) },
    data.judges.length > 1 && { key: "judge", label: "Judge", kind: "select", options: named(data.judges) },
    data.domains.length > 1 && { key: "domain", label: "Domain of either", kind: "select", options: named(data.domains, "no domain") },
    { key: "against", label: "rater and judge disagree", kind: "check" },
    { key: "flips", label: "the two orders disagree (flips)", kind: "check" },
    { key: "heldout", label: "held out from training", kind: "check" },
  ].filter(Boolean);

  function matcher(get) {
    const tests = [
      get("criterion") && ((row) => data.criterion[row] === Number(get("criterion"))),
      get("judge") && ((row) => data.judge[row] === Number(get("judge"))),
      get("domain") && ((row) => [data.firstDomain[row], data.secondDomain[row]].includes(Number(get("domain")))),
      get("against") && disagrees,
      get("flips") && flips,
      get("heldout") && ((row) => data.heldOut[row] === true),
      find ? find(get("q")) : null,
    ].filter(Boolean);
    return (row) => tests.every((test) => test(row));
  }

  const title = (row) => `Pair ${shown(row + 1)}: ${data.criteria[data.criterion[row]]}`;
  const columns = () => [
    { label: "Pair", kind: "wide", cell: (row) => [
      el("button", { type: "button", class: "open" }, el("bdi", {}, title(row))),
      hasTexts && el("span", { class: "excerpt", dir: "auto" }, data.firstText[row].slice(0, 120).replace(/\s+/g, " ")) || null] },
    { label: "Judge", minor: true, cell: (row) => el("bdi", {}, data.judges[data.judge[row]]) },
    { label: "Domains", minor: true, cell: (row) => [el("bdi", {}, breakable(domain(data.firstDomain[row]))), " / ", el("bdi", {}, breakable(domain(data.secondDomain[row])))] },
    { label: "p judge", kind: "number", cell: (row) => chance(average[row]) },
    { label: "p rater", kind: "number", cell: (row) => chance(data.rater[row]) },
    { label: "apart", kind: "number", minor: true, cell: (row) => chance(gap(row)) },
  ];

  function read(row, get) {
    const held = data.heldOut[row];
    const badges = [
      ["", `judge ${data.judges[data.judge[row]]}`],
      disagrees(row) && ["warn", "rater and judge disagree"],
      flips(row) && ["warn", "the two orders disagree"],
      held !== null && ["", held ? "held out" : "in the rater's training"],
    ].filter(Boolean);
    const chances = [["first shown first", data.forward[row]], ["second shown first", data.backward[row]],
      ["judge, average", average[row]], ["rater", data.rater[row]]];
    return [
      el("p", {}, badges.map(([look, text]) => el("span", { class: `badge ${look}`, dir: "auto" }, text))),
      el("h4", {}, "p(second is better)"),
      el("div", { class: "ratings" }, chances.flatMap(([name, p]) => [el("span", {}, name), el("strong", {}, chance(p)), chanceBar(p), el("span", { class: "faint" }, p === null ? "" : p === 0.5 ? "even" : p > 0.5 ? "second" : "first")])),
      el("div", { class: "sides" }, ["first", "second"].map((side) => el("section", {},
        el("h4", { dir: "auto" }, hasTexts ? `${side === "first" ? "First" : "Second"}: ${data[`${side}Id`][row]}` : side === "first" ? "First" : "Second"),
        el("span", { class: "badge", dir: "auto" }, domain(data[`${side}Domain`][row])),
        hasTexts ? textBox(data[`${side}Text`][row], get("q")) : null,
        hasTexts && data[`${side}IsCut`][row] ? el("p", { class: "note" }, "The text goes on; it is cut here.") : null))),
    ].flat();
  }

  const orders = [
    ["", "as given", null],
    ["disagreement", "rater against judge", gap],
    ["margin", "judge's margin", (row) => (average[row] === null ? null : Math.abs(average[row] - 0.5))],
    ["position", "effect of the order", turn],
  ];
  return { noun: "pairs", length: data.length, filters, orders, matcher, columns, title, read, isStacked: true, actions: () => null };
}

/** A probability with three decimals; one that they would make 0 or 1 says so. */
function chance(p) {
  if (p === null) return shown(p);
  if (p < 0.001) return p === 0 ? "0" : "<0.001";
  return p > 0.999 && p < 1 ? ">0.999" : p.toFixed(3);
}

/** A probability as a bar from the middle, to the left for the first and to the right for the second text. */
function chanceBar(p) {
  return svgEl("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
    svgEl("rect", { class: "track", width: 100, height: 6 }),
    p === null ? null : svgEl("rect", { class: `bar ${p >= 0.5 ? "s0" : "s1"}`, x: Math.min(50, 100 * p), width: Math.abs(100 * p - 50), height: 6 }));
}
