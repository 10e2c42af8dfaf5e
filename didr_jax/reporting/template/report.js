"use strict";
const page = document.documentElement;
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
page.classList.add("script");
page.dataset.view = "beside";

for (const choice of all(".view input")) {
  choice.addEventListener("change", () => { page.dataset.view = choice.value; });
  if (choice.checked) page.dataset.view = choice.value; // a browser remembers it over a reload
}
const swap = (pictures, pressed) => pictures.setAttribute("aria-pressed", String(pressed));
const press = (pictures) => {
  if (page.dataset.view === "swap") return swap(pictures, pictures.getAttribute("aria-pressed") !== "true");
  document.querySelector('.view [value="swap"]').checked = true;
  page.dataset.view = "swap";
  swap(pictures, true);
  pictures.scrollIntoView({ block: "nearest" });
};
for (const pictures of all(".pictures")) pictures.addEventListener("click", () => press(pictures));
document.addEventListener("keydown", (event) => {
  if (event.key !== "b" || event.ctrlKey || event.metaKey || event.altKey || page.dataset.view !== "swap") return;
  const pressed = all(".pictures").some((pictures) => pictures.getAttribute("aria-pressed") !== "true");
  all(".pictures").forEach((pictures) => swap(pictures, pressed));
});
for (const slider of all(".slider")) {
  const frames = all(".frame", slider);
  slider.querySelector("input").addEventListener("input", (event) => {
    frames.forEach((frame, i) => frame.classList.toggle("shown", i === Number(event.target.value)));
    slider.querySelector("output").textContent = frames[event.target.value].dataset.step;
  });
}
