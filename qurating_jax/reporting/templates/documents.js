// --- documents --------------------------------------------------------------------------------------------------------

function documentsExplorer(data) {
  const hasTexts = Boolean(data.text);
  const title = (row) => (hasTexts ? data.id[row] : `Document ${shown(row + 1)}`);
  const domain = (row) => data.domains[data.domain[row]] || "no domain";
  const topic = (row) => (data.topic[row] === null ? "no topic" : data.topics[data.topic[row]]);
  const find = hasTexts ? textMatcher([data.id, data.text], data.length) : null;
  const isWhole = data.criteria.every((_, k) => data.means?.[k] != null && data.stds?.[k] > 0);
  const means = data.criteria.map((_, k) => (isWhole ? { mean: data.means[k], deviation: data.stds[k] } : spread(data.ratings[k])));
  const named = (names) => names.map((name, k) => [String(k), name || "no domain"]);
  const isRating = (sort) => /^r\d+$/.test(sort) && Number(sort.slice(1)) < data.criteria.length;
  const criterionOf = (get) => (isRating(get("sort")) ? Number(get("sort").slice(1)) : Number(get("criterion")) || 0);

  const filters = [
    hasTexts && { key: "q", label: "Search in text and id", kind: "search" },
    data.domains.length > 1 && { key: "domain", label: "Domain", kind: "select", options: [["", "all"], ...named(data.domains)] },
    data.topics.length > 0 && { key: "topic", label: "Topic", kind: "select", options: [["", "all"], ...named(data.topics)] },
    data.criteria.length > 0 && { key: "criterion", label: "Percentile of", kind: "select",
      options: data.criteria.map((name, k) => [k ? String(k) : "", name]) },
    data.criteria.length > 0 && { key: "from", label: "from", kind: "number", placeholder: "0" },
    data.criteria.length > 0 && { key: "to", label: "to", kind: "number", placeholder: "100" },
    data.selections.length > 0 && { key: "selected", label: "Selected", kind: "select",
      options: [["", "either"], ["any", "by any selection"], ["none", "by none"],
        ...data.selections.map((name, k) => [String(k), `by ${name}`])] },
  ].filter(Boolean);

  function matcher(get) {
    const criterion = Number(get("criterion")) || 0;
    const low = get("from") === "" ? null : Number(get("from"));
    const high = get("to") === "" ? null : Number(get("to"));
    const percentiles = data.percentiles[criterion] ?? [];
    const inText = find ? find(get("q")) : null;
    const tests = [
      get("domain") && ((row) => data.domain[row] === Number(get("domain"))),
      get("topic") && ((row) => data.topic[row] === Number(get("topic"))),
      get("selected") === "any" && ((row) => data.selected[row].length > 0),
      get("selected") === "none" && ((row) => data.selected[row].length === 0),
      /^\d+$/.test(get("selected")) && ((row) => data.selected[row].includes(Number(get("selected")))),
      low !== null && ((row) => percentiles[row] !== null && percentiles[row] >= low),
      high !== null && ((row) => percentiles[row] !== null && percentiles[row] <= high),
      inText,
    ].filter(Boolean);
    return (row) => tests.every((test) => test(row));
  }

  function columns(get) {
    const active = criterionOf(get);
    const some = data.criteria.map((_, k) => k).filter((k) => data.criteria.length <= 3 || k === active);
    return [
      { label: "Document", kind: "wide", cell: (row) => [
        el("button", { type: "button", class: "open" }, el("bdi", {}, title(row))),
        hasTexts && el("span", { class: "excerpt", dir: "auto" }, data.text[row].slice(0, 120).replace(/\s+/g, " ")) || null] },
      { label: "Domain", minor: true, cell: (row) => el("bdi", {}, breakable(domain(row))) },
      { label: "Topic", minor: true, cell: (row) => el("bdi", { class: "faint" }, topic(row)) },
      { label: "Tokens", kind: "number", minor: true, cell: (row) => shown(data.tokens[row]) },
      ...some.map((k) => ({ label: data.criteria[k], kind: "number", minor: k !== active, cell: (row) => [
        shown(data.ratings[k][row]), " ",
        el("span", { class: "faint" }, data.percentiles[k][row] === null ? "" : `(${Math.round(data.percentiles[k][row])})`)] })),
      ...(data.criteria.length > some.length ? [{ label: "All ratings", kind: "minis-column", minor: true, cell: (row) => minis(data, row) }] : []),
    ].filter((column) => data.topics.length || column.label !== "Topic");
  }

  function read(row, get) {
    const taken = data.selected[row].map((k) => data.selections[k]);
    const badges = [domain(row), topic(row), `${shown(data.tokens[row])} tokens`,
      ...(data.selections.length ? [taken.length ? `selected by ${taken.join(", ")}` : "not selected"] : [])];
    return [
      el("p", {}, badges.map((text) => el("span", { class: "badge", dir: "auto" }, text))),
      data.criteria.length ? [el("h4", {}, "Ratings"), ratingBars(data, row)] : null,
      data.windows[row].some((values) => values.length > 1) ? windowStrips(data, row, means, isWhole) : null,
      hasTexts ? [el("h4", {}, "Text"), textBox(data.text[row], get("q")),
        data.isCut[row] ? el("p", { class: "note" }, "The text goes on; it is cut here.") : null] : null,
    ].flat();
  }

  const orders = [
    ["", "as given", null],
    ...data.criteria.map((name, k) => [`r${k}`, name, (row) => data.ratings[k][row]]),
    ["length", "length", (row) => data.tokens[row]],
  ];
  return { noun: "documents", length: data.length, filters, orders, matcher, columns, title, read,
    actions: (row) => (hasTexts ? copyButton(data.id[row], "Copy id") : null) };
}

/** Mean and standard deviation of the numbers in a list. */
function spread(values) {
  const rated = values.filter((value) => value !== null);
  const mean = rated.reduce((sum, value) => sum + value, 0) / Math.max(rated.length, 1);
  const variance = rated.reduce((sum, value) => sum + (value - mean) ** 2, 0) / Math.max(rated.length, 1);
  return { mean, deviation: Math.sqrt(variance) || 1 };
}

/** A small upright bar per criterion, as high as the percentile. */
function minis(data, row) {
  const told = data.criteria.map((name, k) => `${name}: ${shown(data.ratings[k][row])}, ${shownPercentile(data.percentiles[k][row])}`);
  return el("span", { class: "minis", role: "img", "aria-label": told.join("; ") },
    data.criteria.map((name, k) => {
      const percentile = data.percentiles[k][row];
      return svgEl("svg", { width: 9, height: 22, viewBox: "0 0 9 22", "aria-hidden": "true" }, svgEl("title", {}, told[k]),
        svgEl("rect", { class: "track", width: 9, height: 22 }),
        percentile === null ? null : svgEl("rect", { class: "bar s0", y: 22 - (22 * percentile) / 100, width: 9, height: (22 * percentile) / 100 }));
    }));
}

function ratingBars(data, row) {
  return el("div", { class: "ratings" }, data.criteria.flatMap((name, k) => {
    const percentile = data.percentiles[k][row];
    return [
      el("bdi", {}, name), el("strong", {}, shown(data.ratings[k][row])),
      svgEl("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
        svgEl("rect", { class: "track", width: 100, height: 6 }),
        percentile === null ? null : svgEl("rect", { class: "bar s0", width: percentile, height: 6 })),
      el("span", { class: "faint" }, shownPercentile(percentile)),
    ];
  }));
}

/** A strip for every criterion: windows as wide as they are long, coloured by how far they are from the mean. */
function windowStrips(data, row, means, isWhole) {
  const tokens = data.windowTokens[row];
  const total = tokens.reduce((sum, value) => sum + value, 0) || 1;
  const strips = data.criteria.map((name, k) => {
    const values = data.windows[row][k] ?? [];
    let place = 0;
    const blocks = values.map((value, window) => {
      const width = (1000 * (tokens[window] ?? total / values.length)) / total;
      const steps = value === null ? 0 : Math.round((2.5 * (value - means[k].mean)) / means[k].deviation);
      const shade = value === null ? "none" : `h${Math.max(-5, Math.min(5, steps))}`;
      const hint = svgEl("title", {}, `${name}, window ${window + 1} of ${values.length}: ${shown(value)}`);
      const block = svgEl("rect", { class: `cell ${shade}`, x: place, width, height: 20 }, hint);
      place += width;
      return block;
    });
    return [el("bdi", { class: "faint" }, name),
      svgEl("svg", { class: "strip", viewBox: "0 0 1000 20", preserveAspectRatio: "none", role: "img" },
        svgEl("title", {}, `${name} along the document`), blocks)];
  });
  const lines = tokens.map((num, window) => el("tr", {}, el("td", { class: "number" }, shown(window + 1)),
    el("td", { class: "number" }, shown(num)),
    data.criteria.map((_, k) => el("td", { class: "number" }, shown(data.windows[row][k]?.[window])))));
  const head = ["window", "tokens", ...data.criteria].map((name) => el("th", { scope: "col", class: "number" }, name));
  return [
    el("h4", {}, "Along the document"),
    el("p", { class: "note" }, `Windows of text, blue where they are rated above the mean of ${isWhole ? "all documents" : "the documents shown"}, orange below.`),
    el("div", { class: "strips" }, strips),
    el("details", {}, el("summary", {}, "The numbers"),
      el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, lines)))),
  ];
}
