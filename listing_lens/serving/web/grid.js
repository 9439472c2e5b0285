// Results as cards, each a link to its item.

import { price, say } from "./words.js";

const grid = document.getElementById("grid");

export function show(results, { onTap, onCategory, scored }) {
  grid.replaceChildren(...results.map((result) => card(result, onTap, onCategory, scored)));
  return [...grid.children];
}

export function clear() {
  grid.replaceChildren();
}

export function picture(path, alt) {
  const image = Object.assign(document.createElement("img"), { src: path, alt, loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => {
    image.replaceWith(element("span", "missing", say("noPhoto")));
  });
  return image;
}

function card(result, onTap, onCategory, scored) {
  const item = element("li");
  item.dataset.item = result.item_id;
  const link = Object.assign(document.createElement("a"), { href: `/?item=${encodeURIComponent(result.item_id)}` });
  link.append(
    picture(result.photo, ""),
    element("span", "title", result.title),
    element("span", "price", price(result.price)),
  );
  if (scored) link.append(element("span", "score", say("similarity", result.score)));
  link.addEventListener("click", () => onTap(result));
  item.append(link);
  if (result.category.length) {
    const path = element("button", "path", result.category.join(" › "));
    path.type = "button";
    path.addEventListener("click", () => onCategory(result.category));
    item.append(path);
  }
  return item;
}

export function element(name, className = "", text = "") {
  // Sellers wrote the text: it is never taken for markup.
  return Object.assign(document.createElement(name), { className, textContent: text });
}
