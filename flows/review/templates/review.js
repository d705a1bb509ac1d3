"use strict";
(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  // Light and dark: as the system says, until someone presses the button.
  document.querySelector("#theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme === "auto" ? matchMedia("(prefers-color-scheme: dark)").matches : root.dataset.theme === "dark";
    root.dataset.theme = dark ? "light" : "dark";
  });
  all(".compare input").forEach((slider) => slider.addEventListener("input", () => slider.closest(".compare").style.setProperty("--split", slider.value + "%")));
})();
