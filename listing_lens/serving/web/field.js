// What is to be found, in words: a field that is searched with alone, or with the photo.

import { say } from "./words.js";

const form = document.getElementById("words");
const label = form.querySelector("label span");
const field = form.elements.text;

// What is written, whether it was searched with or not.
export const written = () => field.value.trim();

export function onSearch(search) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
}

export function show(text, { besidePhoto }) {
  field.value = text;
  const names = besidePhoto ? ["wordsBesidePhoto", "wordsBesidePhotoSuch"] : ["words", "wordsSuch"];
  [label.dataset.words, field.dataset.placeholder] = names;
  label.textContent = say(names[0]);
  field.placeholder = say(names[1]);
}

export function focus() {
  field.focus();
}
