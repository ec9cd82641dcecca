// --- start: pages at once, explorers when the data below this script are there ---------------------------------------

for (const link of links) {
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    visitPage(link.dataset.page);
  });
}
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address is ours
  document.getElementById("content").focus();
});
themeButton.addEventListener("click", () => go({ theme: isDark() ? "light" : "dark" }, true));
prefersDark.addEventListener("change", show);
document.getElementById("help-open").addEventListener("click", () => help.showModal());
document.getElementById("help-close").addEventListener("click", () => help.close());
document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("table.verdicts").forEach(makeVerdicts);
addEventListener("beforeprint", () => document.querySelectorAll(".reasons").forEach((reasons) => (reasons.open = true)));
document.addEventListener("keydown", onKey);
addEventListener("popstate", show);
addEventListener("DOMContentLoaded", () => {
  show();
  root.dataset.ready = String(Math.round(performance.now()));
});
show();
