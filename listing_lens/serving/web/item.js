// The item of an item's page.

import * as address from "./address.js";
import { linkCategory, picture } from "./grid.js";
import { price, say } from "./words.js";

const article = document.getElementById("item");
const part = (selector) => article.querySelector(selector);

export function show(item, inCategory) {
  part(".photo").replaceChildren(picture(item.photo, item.title));
  part("h2").textContent = item.title;
  part(".price").textContent = price(item.price);
  part(".state").textContent = say(item.status);
  linkCategory(part(".path"), item.category, inCategory);
  part("#item-search").href = address.write({ photo: item.item_id });
  article.hidden = false;
}

export function hide() {
  article.hidden = true;
}

export function focus() {
  part("h2").focus({ preventScroll: true });
}
