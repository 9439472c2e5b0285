// The page. What it shows has an address: newest listings, a search with words or a photo, an item with those similar to it.
// Going to an address asks the service; going back shows what was shown there.

import * as address from "./address.js";
import * as api from "./api.js";
import { mayKeep } from "./consent.js";
import * as crop from "./crop.js";
import { tellTap, tellView, watchImpressions } from "./events.js";
import * as field from "./field.js";
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
const hasPhoto = ({ photo, search }) => Boolean(photo || search || history.state?.own);

function kindOf(place) {
  if (place.item) return "similar";
  if (hasPhoto(place)) return place.text ? "foundByBoth" : "foundByPhoto";
  return place.text ? "foundByText" : "newest";
}

const isSearch = (kind) => kind.startsWith("found");

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
  // On a phone, the query is above what was found with it.
  if (isSearch(kindOf(place)) && heading.getBoundingClientRect().top > innerHeight / 2) heading.scrollIntoView();
}

// Goes to the same query with changes. What it shows is searched with: words also if they were only just written, and no
// photo that cannot be had.
function change(changes) {
  const to = { ...place, text: field.written(), ...changes };
  if (shown.refusal?.words === "photoNotKept") goWithoutPhoto(to);
  else go(address.write(to), history.state?.own);
}

const goWithoutPhoto = ({ text, filters }) => go(address.write({ text, filters }));

function searchWritten() {
  if (!hasPhoto(place) && !place.text && !field.written()) return field.focus();
  change({ item: null });
}

function pick(file) {
  if (!file) return;
  const own = newKey();
  photos.set(own, file);
  go(address.write({ text: field.written(), filters: place.item ? null : place.filters }), own);
}

// Shows what the address stands for. Whether it was shown, and the visitor has not gone on meanwhile.
async function open({ isBack = false } = {}) {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  if (!history.state?.entry) history.replaceState({ entry: newKey() }, "");
  place = address.read(location.search);
  shown = {};
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
    takeAway(error);
  } finally {
    if (!signal.aborted) $("grid").ariaBusy = "false";
  }
  render();
  return true;
}

function prepare(kind) {
  document.body.dataset.kind = kind;
  $("grid").ariaBusy = "true";
  $("status").textContent = say(isSearch(kind) ? "searching" : "loading");
  $("share").hidden = true;
  refusals.hide();
  filters.show(place.filters);
  $("filters").hidden = kind === "similar";
  field.show(place.text, { besidePhoto: hasPhoto(place) });
  crop.set(place.crop);
  if (!hasPhoto(place)) preview.show(null);
}

// Takes away the part of the query that cannot be searched with, so that it is not in the way of the next search.
function takeAway({ words }) {
  if (words === "photosOnly") field.show("", { besidePhoto: hasPhoto(place) });
  if (words !== "photoNotKept") return;
  preview.show(null);
  field.show(place.text, { besidePhoto: false });
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
  if (!photo && !place.text) return api.newest(new URLSearchParams([["k", RESULTS], ...place.filters]), signal);
  for (const [name, value] of place.filters) parameters.append(name, value);
  if (place.text) parameters.set("text", place.text);
  if (!photo) return api.searchByText(parameters, signal);
  if (place.crop) parameters.set("crop", place.crop);
  const answer = await api.searchByPhoto(photo, parameters, signal);
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
  document.title = `${answer?.item?.title ?? (place.text || say(kind))} – Listing Lens`;
  if (answer?.item) item.show(answer.item, inCategory);
  else item.hide();
  if (refusal) refusals.show(refusal);
  $("photo-alone").hidden = refusal?.words !== "photosOnly" || !hasPhoto(place);
  $("status").textContent = refusal ? "" : counted(answer.results.length);
  $("share").hidden = !answer || (history.state.own && !place.search);
  const cards = grid.show(answer?.results ?? [], {
    // How like a photo is to words is on another scale, on which the best are not near 100 %.
    isScored: kind === "similar" || kind === "foundByPhoto",
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
  const isSamePhoto = !to.item && link.classList.contains("path");
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
field.onSearch(searchWritten);
$("photo-remove").addEventListener("click", () => goWithoutPhoto({ ...place, text: field.written() }));
$("photo-alone").addEventListener("click", () => change({ text: "" }));
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
