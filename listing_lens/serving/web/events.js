// Tells what was seen and tapped, in batches; a batch that fails is dropped: the page's visitor must not notice.

import { mayKeep } from "./consent.js";

const PAUSE_MS = 2000;
const MOST = 500;

let waiting = [];
let timer = null;
let isWanted = true;
let observer = null;
const seen = new Set();
// By which search an item was found last.
const foundBy = new Map();

// A search that is not kept has no id: nothing is told of it.
export function tell(kind, searchId, itemId) {
  if (!searchId || !mayKeep() || !isWanted) return;
  waiting.push({ kind, search_id: searchId, item_id: itemId });
  timer ??= setTimeout(() => take((body) => post(body)), PAUSE_MS);
}

export function tellTap(searchId, itemId) {
  foundBy.set(itemId, searchId);
  tell("tap", searchId, itemId);
}

export function tellView(itemId) {
  tell("view", foundBy.get(itemId), itemId);
}

// Tells of each card once per search, when it has been on the screen.
export function watchImpressions(cards, searchId) {
  observer?.disconnect();
  observer = new IntersectionObserver((entries) => {
    for (const { target } of entries.filter((one) => one.isIntersecting)) {
      observer.unobserve(target);
      const key = `${searchId} ${target.dataset.item}`;
      if (!seen.has(key)) tell("impression", searchId, target.dataset.item);
      seen.add(key);
    }
  }, { threshold: 0.5 });
  for (const card of cards) observer.observe(card);
}

function take(send) {
  clearTimeout(timer);
  timer = null;
  // Whoever has changed their mind is not told of.
  const events = mayKeep() ? waiting : [];
  waiting = [];
  for (let first = 0; first < events.length; first += MOST)
    send(new Blob([JSON.stringify({ events: events.slice(first, first + MOST) })], { type: "application/json" }));
}

async function post(body) {
  const answer = await fetch("/events", { method: "POST", body }).catch(() => null);
  // This service takes events from those who have a key only.
  if (answer?.status === 403) isWanted = false;
}

// A beacon is sent also when the page is left.
const leave = () => take((body) => navigator.sendBeacon("/events", body));
document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && leave());
addEventListener("pagehide", leave);
