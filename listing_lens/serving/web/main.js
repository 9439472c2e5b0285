// The page. What it shows has an address: newest listings, a search with a photo, an item with those similar to it. Going to
// an address asks the service; going back shows what was shown there.

import * as address from "./address.js";
import * as api from "./api.js";
import { mayKeep } from "./consent.js";
import * as crop from "./crop.js";
import { tellTap, tellView, watchImpressions } from "./events.js";
import * as filters from "./filters.js";
import * as grid from "./grid.js";
import * as item from "./item.js";
import * as preview from "./preview.js";
import * as refusals from "./refusals.js";
import { say, speak, translate } from "./words.js";

const $ = (id) => document.getElementById(id);
const RESULTS = 30;

// By an entry of the history, and by the key of a photo. The visitor's own are nowhere else if searches are not kept.
const answers = new Map();
const photos = new Map();
// What is under way; aborted by whatever the visitor does next.
let asking = new AbortController();
let place = address.read("");
let shown = {};

const newKey = () => `${performance.timeOrigin} ${performance.now()} ${Math.random()}`;
const kindOf = ({ item, photo, search }) => (item ? "similar" : photo || search || history.state?.own ? "found" : "newest");

// Goes to an address of this page; with the key of the visitor's own photo, if that is what is searched with.
async function go(to, own) {
  history.replaceState({ ...history.state, y: scrollY }, "");
  history.pushState({ entry: newKey(), own }, "", to);
  scrollTo(0, 0);
  if (await open()) arrive();
}

function arrive() {
  if (shown.answer?.item) return item.focus();
  const heading = $("results");
  heading.focus({ preventScroll: true });
  // On a phone, the photo and its crop are above what was found with it.
  if (kindOf(place) === "found" && heading.getBoundingClientRect().top > innerHeight / 2) heading.scrollIntoView();
}

// Goes to the same photo, with another part or other filters.
const change = (changes) => go(address.write({ ...place, ...changes }), history.state?.own);

function pick(file) {
  if (!file) return;
  const own = newKey();
  photos.set(own, file);
  go(address.write({ filters: place.item ? null : place.filters }), own);
}

// Shows what the address stands for. Whether it was shown, and the visitor has not gone on meanwhile.
async function open({ isBack = false } = {}) {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  if (!history.state?.entry) history.replaceState({ entry: newKey() }, "");
  place = address.read(location.search);
  prepare(kindOf(place));
  const { entry } = history.state;
  try {
    const photo = await photoAt(signal);
    if (signal.aborted) return false;
    preview.show(photo);
    const answer = (isBack && answers.get(entry)) || (await ask(photo, signal));
    if (signal.aborted) return false;
    answers.set(entry, answer);
    shown = { answer };
    if (place.item && !isBack) tellView(place.item);
  } catch (error) {
    if (signal.aborted) return false;
    if (!(error instanceof api.Refusal)) throw error;
    shown = { refusal: error };
  } finally {
    if (!signal.aborted) $("grid").ariaBusy = "false";
  }
  render();
  return true;
}

function prepare(kind) {
  document.body.dataset.kind = kind;
  $("grid").ariaBusy = "true";
  $("status").textContent = say(kind === "found" ? "searching" : "loading");
  $("share").hidden = true;
  refusals.hide();
  filters.show(place.filters);
  $("filters").hidden = kind === "similar";
  crop.set(place.crop);
  if (kind !== "found") preview.show(null);
}

// The photo that is searched with; null if none is.
async function photoAt(signal) {
  const own = history.state.own;
  if (photos.has(own)) return photos.get(own);
  if (!place.photo && !place.search) {
    if (own) throw new api.Refusal("photoNotKept");
    return null;
  }
  const key = address.write({ photo: place.photo, search: place.search });
  if (!photos.has(key)) photos.set(key, await api.photoOf(place, signal));
  return photos.get(key);
}

async function ask(photo, signal) {
  const parameters = new URLSearchParams({ k: RESULTS, keep: mayKeep() });
  if (place.item) return api.similar(place.item, parameters, signal);
  if (!photo) return api.newest(new URLSearchParams([["k", RESULTS], ...place.filters]), signal);
  for (const [name, value] of place.filters) parameters.append(name, value);
  if (place.crop) parameters.set("crop", place.crop);
  const answer = await api.search(photo, parameters, signal);
  // From here on the photo can be had by its search; what is kept of a part of it is that part.
  if (!signal.aborted && !place.photo && !place.search && !place.crop && answer.search_id) {
    place.search = answer.search_id;
    history.replaceState(history.state, "", address.write(place));
  }
  return answer;
}

function render() {
  const { answer, refusal } = shown;
  const kind = kindOf(place);
  const inCategory = (levels) =>
    address.write(place.item ? { filters: levels.map((level) => ["category", level]) } : { ...place, filters: filters.within(levels) });
  $("results").textContent = say(kind);
  $("preview").alt = say("yourPhoto");
  $("source").textContent = answer ? say("searchedIn", answer.index) : "";
  document.title = `${answer?.item?.title ?? say(kind)} – Listing Lens`;
  if (answer?.item) item.show(answer.item, inCategory);
  else item.hide();
  if (refusal) refusals.show(refusal);
  $("status").textContent = refusal ? "" : counted(answer.results.length);
  $("share").hidden = !answer || (history.state.own && !place.search);
  const cards = grid.show(answer?.results ?? [], {
    isScored: kind !== "newest",
    inCategory,
    onTap: (result) => tellTap(answer.search_id, result.item_id),
  });
  watchImpressions(cards, answer?.search_id);
}

function counted(results) {
  if (results) return say("results", results);
  return say(String(place.filters) ? "nothingWithFilters" : "nothing");
}

async function goBack() {
  const from = place.item;
  if (!(await open({ isBack: true }))) return;
  if (!grid.focus(from)) $("results").focus({ preventScroll: true });
  scrollTo(0, history.state.y ?? 0);
}

async function share() {
  const { href } = location;
  // Browsers lend the clipboard to secure pages only.
  const copied = await navigator.clipboard?.writeText(href).then(() => true, () => false);
  $("status").textContent = copied ? say(place.search ? "sharedPhoto" : "shared") : say("shareByHand", href);
}

function follow(event) {
  const link = event.target.closest("a");
  const isPlain = !event.defaultPrevented && event.button === 0 && !(event.metaKey || event.ctrlKey || event.shiftKey || event.altKey);
  if (!link || !isPlain || link.origin !== location.origin || link.pathname !== "/" || link.hash) return;
  event.preventDefault();
  const to = address.read(link.search);
  // A category among the results of the visitor's own photo is searched with that photo.
  const isSamePhoto = kindOf(place) === "found" && !to.item && link.classList.contains("path");
  go(link.href, isSamePhoto ? history.state.own : undefined);
}

for (const id of ["file", "camera"])
  $(id).addEventListener("change", ({ target }) => {
    pick(target.files[0]);
    // So that the same file can be chosen again.
    target.value = "";
  });
addEventListener("paste", (event) => pick([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
for (const name of ["dragenter", "dragover", "dragleave", "drop"])
  addEventListener(name, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop") pick(event.dataTransfer.files[0]);
  });
$("crop-search").addEventListener("click", () => change({ crop: crop.part() }));
$("crop-reset").addEventListener("click", () => change({ crop: null }));
filters.onChoice((chosen) => change({ filters: chosen }));
refusals.onAgain(() => open().then((isShown) => isShown && arrive()));
$("share").addEventListener("click", share);
for (const button of document.querySelectorAll("[data-language]"))
  button.addEventListener("click", () => {
    speak(button.dataset.language);
    if (shown.answer || shown.refusal) render();
  });
document.addEventListener("click", follow);
$("skip").addEventListener("click", (event) => {
  // Without an entry in the history, to which nobody would go back.
  event.preventDefault();
  $("results").focus();
});
addEventListener("popstate", goBack);

history.scrollRestoration = "manual";
translate();
open();
