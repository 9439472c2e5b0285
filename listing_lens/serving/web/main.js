// The page's states, each with an address: newest listings, a search with a photo, an item with those similar to it.

import * as api from "./api.js";
import * as crop from "./crop.js";
import { tell, watchImpressions } from "./events.js";
import * as grid from "./grid.js";
import { price, say, speak, translate } from "./words.js";

const $ = (id) => document.getElementById(id);
const FILTERS = ["price_min", "price_max", "status"];
const RESULTS = 30;

// The photo that is searched with, and where it can be had again: an item, or a search that was kept.
let photo = null;
let photoFrom = {};
let category = [];
// Which navigation is the newest: answers to earlier ones are not shown.
let turn = 0;

function filters() {
  const form = new FormData($("filters"));
  const parameters = new URLSearchParams(FILTERS.filter((name) => form.get(name)).map((name) => [name, form.get(name)]));
  for (const level of category) parameters.append("category", level);
  return parameters;
}

function showFilters(parameters) {
  for (const name of FILTERS) $("filters").elements[name].value = parameters.get(name) ?? "";
  category = parameters.getAll("category");
  $("category").hidden = !category.length;
  $("category").querySelector("output").textContent = category.join(" › ");
}

function address() {
  const parameters = filters();
  for (const [name, value] of Object.entries(photoFrom)) parameters.set(name, value);
  if (!crop.isWhole()) parameters.set("crop", crop.part().join(","));
  return `/?${parameters}`;
}

async function searchNow() {
  const mine = begin(say("searching"));
  $("item").hidden = true;
  const parameters = filters();
  parameters.set("k", RESULTS);
  parameters.set("keep", $("keep").checked);
  if (!crop.isWhole()) parameters.set("crop", crop.part().join(","));
  await settle(mine, "found", async () => {
    const answer = await api.search(photo, parameters);
    // The photo was the visitor's own: whoever has the link can see it, as long as the search is kept.
    if (!photoFrom.photo && answer.search_id) photoFrom = { search: answer.search_id };
    if (mine === turn) {
      history.replaceState(null, "", address());
      $("share").hidden = !Object.keys(photoFrom).length;
    }
    return answer;
  });
}

async function showItem(itemId) {
  const mine = begin(say("loading"));
  await settle(mine, "similar", async () => {
    const answer = await api.similar(itemId, new URLSearchParams({ k: RESULTS, keep: $("keep").checked }));
    if (mine === turn) {
      describe(answer.item);
      $("share").hidden = false;
      tell("view", sessionStorage.getItem(`shown ${itemId}`), itemId);
    }
    return answer;
  });
}

function describe(item) {
  const article = $("item");
  article.querySelector("img, .missing").replaceWith(grid.picture(item.photo, item.title));
  article.querySelector("h2").textContent = item.title;
  article.querySelector(".price").textContent = price(item.price);
  article.querySelector(".path").textContent = item.category.join(" › ");
  article.querySelector(".state").textContent = say(item.status);
  $("item-search").onclick = () => go(`/?photo=${encodeURIComponent(item.item_id)}`);
  article.hidden = false;
  document.title = `${item.title} – Listing Lens`;
}

async function showNewest() {
  const mine = begin(say("loading"));
  $("item").hidden = true;
  await settle(mine, "newest", () => api.newest(RESULTS));
}

function begin(status) {
  turn += 1;
  $("status").textContent = status;
  $("share").hidden = true;
  document.title = "Listing Lens";
  return turn;
}

// Shows an answer, or why there is none, unless the visitor has gone on.
async function settle(mine, heading, ask) {
  try {
    const answer = await ask();
    if (mine !== turn) return;
    $("results").textContent = say(heading);
    $("status").textContent = answer.results.length ? say("results", answer.results.length) : say("nothing");
    $("source").textContent = say("searchedIn", answer.index);
    const cards = grid.show(answer.results, {
      scored: heading !== "newest",
      onTap: (result) => {
        tell("tap", answer.search_id, result.item_id);
        if (answer.search_id) sessionStorage.setItem(`shown ${result.item_id}`, answer.search_id);
      },
      onCategory: (path) => {
        category = path;
        go(photo ? address() : `/?${filters()}`);
      },
    });
    if (heading !== "newest") watchImpressions(cards, answer.search_id);
  } catch (error) {
    if (mine !== turn) return;
    if (!(error instanceof api.Refusal)) throw error;
    grid.clear();
    $("results").textContent = say(heading);
    $("status").textContent = error.message;
    $("source").textContent = "";
  }
}

function usePhoto(file, from) {
  photo = file;
  photoFrom = from;
  const preview = $("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = say("yourPhoto");
  $("photo").hidden = false;
}

async function pick(file) {
  if (!file) return;
  usePhoto(file, {});
  crop.set();
  history.pushState(null, "", "/");
  await searchNow();
  $("results").focus();
}

// Goes to an address of this page.
async function go(to) {
  history.pushState(null, "", to);
  await open();
  scrollTo(0, 0);
  $("results").focus({ preventScroll: true });
}

async function open() {
  const parameters = new URLSearchParams(location.search);
  showFilters(parameters);
  const itemId = parameters.get("item");
  if (itemId) return showItem(itemId);
  const from = parameters.get("photo") ? { photo: parameters.get("photo") } : { search: parameters.get("search") };
  const [name, value] = Object.entries(from)[0];
  if (!value) {
    $("photo").hidden = true;
    photo = null;
    photoFrom = {};
    return showNewest();
  }
  if (photoFrom[name] !== value) {
    const mine = begin(say("loading"));
    try {
      const file = await api.photoOf(name === "photo" ? api.itemPhoto(value) : api.searchPhoto(value));
      if (mine !== turn) return;
      usePhoto(file, from);
    } catch (error) {
      $("status").textContent = error.message;
      return;
    }
  }
  crop.set(parameters.get("crop")?.split(",").map(Number));
  return searchNow();
}

function follow(event) {
  const link = event.target.closest("a");
  const plain = !event.defaultPrevented && event.button === 0 && !(event.metaKey || event.ctrlKey || event.shiftKey || event.altKey);
  if (!link || !plain || link.origin !== location.origin || link.pathname !== "/" || link.hash) return;
  event.preventDefault();
  go(link.href);
}

const drop = $("drop");
for (const name of ["dragover", "dragenter"])
  addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
for (const name of ["dragleave", "drop"]) addEventListener(name, () => drop.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  pick(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => pick([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
for (const id of ["file", "camera"])
  $(id).addEventListener("change", (event) => {
    pick(event.target.files[0]);
    // So that the same file can be chosen again.
    event.target.value = "";
  });
$("filters").addEventListener("submit", (event) => {
  event.preventDefault();
  go(photo ? address() : `/?${filters()}`);
});
$("category-clear").addEventListener("click", () => {
  category = [];
  go(photo ? address() : `/?${filters()}`);
});
$("crop-search").addEventListener("click", () => go(address()));
$("crop-reset").addEventListener("click", () => {
  crop.set();
  go(address());
});
$("share").addEventListener("click", async () => {
  await navigator.clipboard.writeText(location.href);
  $("status").textContent = say("shared");
});
for (const button of document.querySelectorAll("[data-language]"))
  button.addEventListener("click", () => {
    speak(button.dataset.language);
    open();
  });
document.addEventListener("click", follow);
addEventListener("popstate", open);

translate();
open();
