"use strict";
// Before the first paint: whether scripts run, and the theme that the address asks for.
{
  const theme = new URLSearchParams(location.hash.slice(1)).get("theme");
  document.documentElement.classList.add("scripted");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
}
