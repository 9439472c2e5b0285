// Tells what was seen and tapped, in batches; a batch that fails is dropped: the page's visitor must not notice.

const PAUSE_MS = 2000;

let waiting = [];
let timer = null;

export function tell(kind, searchId, itemId) {
  if (!searchId) return;
  waiting.push({ kind, search_id: searchId, item_id: itemId });
  timer ??= setTimeout(send, PAUSE_MS);
}

function send() {
  clearTimeout(timer);
  timer = null;
  const events = waiting.splice(0, 500);
  if (!events.length) return;
  // Goes on also when the page is left.
  fetch("/events", {
    method: "POST",
    keepalive: true,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ events }),
  }).catch(() => {});
}

addEventListener("visibilitychange", () => document.visibilityState === "hidden" && send());

// Tells of each card once, when it has been on the screen.
export function watchImpressions(cards, searchId) {
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      observer.unobserve(entry.target);
      tell("impression", searchId, entry.target.dataset.item);
    }
  }, { threshold: 0.5 });
  for (const card of cards) observer.observe(card);
}
