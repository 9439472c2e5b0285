// The filters of a search: a form, and the category that was chosen from the results.

import { FILTERS } from "./address.js";

const details = document.getElementById("filters");
const form = details.querySelector("form");
const category = document.getElementById("category");
const clear = document.getElementById("filters-clear");
// Beside the results there is room for the form; above them there is not.
const wide = matchMedia("(min-width: 56rem)");

// Calls back with filters that were chosen, as the service takes them.
export function onChoice(choose) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    choose(chosen());
  });
  category.querySelector("button").addEventListener("click", () => choose(within([])));
  clear.addEventListener("click", () => choose(new URLSearchParams()));
}

export function show(filters) {
  for (const name of FILTERS) form.elements[name].value = filters.get(name) ?? "";
  const levels = filters.getAll("category");
  category.hidden = !levels.length;
  category.querySelector("strong").textContent = levels.join(" › ");
  category.dataset.levels = JSON.stringify(levels);
  const count = FILTERS.filter((name) => filters.has(name)).length + (levels.length ? 1 : 0);
  document.getElementById("filter-count").textContent = count ? `(${count})` : "";
  clear.hidden = !count;
}

// The filters that are chosen, with another category.
export function within(levels) {
  const values = new FormData(form);
  const filters = new URLSearchParams(FILTERS.filter((name) => values.get(name)).map((name) => [name, values.get(name)]));
  for (const level of levels) filters.append("category", level);
  return filters;
}

const chosen = () => within(JSON.parse(category.dataset.levels));
const fit = () => (details.open = wide.matches);

wide.addEventListener("change", fit);
fit();
