// Why there is no answer, in words, with what to do.

import { say } from "./words.js";

const panel = document.getElementById("refusal");
const again = document.getElementById("again");
let timer = null;

export function onAgain(ask) {
  again.addEventListener("click", ask);
}

export function show(refusal) {
  panel.hidden = false;
  panel.querySelector("p").textContent = say(refusal.words, ...refusal.values);
  again.hidden = refusal.againAfter === null;
  again.disabled = refusal.againAfter > 0;
  clearTimeout(timer);
  timer = setTimeout(() => (again.disabled = false), 1000 * refusal.againAfter);
}

export function hide() {
  panel.hidden = true;
}
