// Results as cards, each a link to its item. Sellers wrote the texts: they are never taken for markup.

import * as address from "./address.js";
import { price, say } from "./words.js";

const grid = document.getElementById("grid");

// Shows results, and gives their cards. `inCategory` is the address at which a category is shown.
export function show(results, { isScored, inCategory, onTap }) {
  grid.replaceChildren(...results.map((result) => card(result, { isScored, inCategory, onTap })));
  return [...grid.children];
}

// Focuses an item's link. Whether it is shown.
export function focus(itemId) {
  const link = [...grid.children].find((shown) => shown.dataset.item === itemId)?.querySelector("a");
  link?.focus({ preventScroll: true });
  return Boolean(link);
}

export function picture(path, alt) {
  const image = Object.assign(document.createElement("img"), { src: path, alt, loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => image.replaceWith(element("span", "missing", say("noPhoto"))));
  return image;
}

// Puts a category into a link to the listings in it; no link remains of none.
export function linkCategory(link, category, inCategory) {
  link.hidden = !category.length;
  link.textContent = category.join(" › ");
  link.href = inCategory(category);
}

function card(result, { isScored, inCategory, onTap }) {
  const link = Object.assign(element("a"), { href: address.write({ item: result.item_id }) });
  link.append(
    picture(result.photo, ""),
    Object.assign(element("span", "title", result.title), { dir: "auto" }),
    element("span", "price", price(result.price)),
  );
  if (result.status !== "on_sale") link.append(element("span", "state", say(result.status)));
  if (isScored) link.append(element("span", "score soft", say("similarity", result.score)));
  link.addEventListener("click", () => onTap(result));
  const path = Object.assign(element("a", "path soft"), { dir: "auto" });
  linkCategory(path, result.category, inCategory);
  const item = element("li");
  item.dataset.item = result.item_id;
  item.append(link, path);
  return item;
}

function element(name, className = "", text = "") {
  return Object.assign(document.createElement(name), { className, textContent: text });
}
