"use strict";
// The theme follows the system unless the reader chooses one. If nothing can be stored, the choice lasts for the visit.
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const storage = { get: () => null, set: () => {} };
  try {
    const stored = window.localStorage;
    storage.get = () => stored.getItem("pacedrl-theme");
    storage.set = (value) => stored.setItem("pacedrl-theme", value);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
  }
  const dark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  const chosen = storage.get();
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  label();
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    storage.set(root.dataset.theme);
    label();
  });
})();
