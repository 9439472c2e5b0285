// The service's operations, and its refusals in words.

// Why there is no answer: a name of words.js with its values, and in how many seconds it is worth to ask again, if ever.
export class Refusal extends Error {
  constructor(words, { values = [], againAfter = null } = {}) {
    super(words);
    Object.assign(this, { words, values, againAfter });
  }
}

const NOT_VALID = { photo: "notPhoto", price_max: "pricesSwapped", crop: "cropTooSmall", text: "photosOnly" };
const TYPES = new Set(["image/jpeg", "image/png", "image/webp", "image/heic"]);

export function searchByText(parameters, signal) {
  return json(`/search?${parameters}`, { signal });
}

export function searchByPhoto(photo, parameters, signal) {
  // The service looks at the photo itself; but a type that is not of its OpenAPI need not pass what is before it.
  const type = TYPES.has(photo.type) ? photo.type : "image/jpeg";
  return json(`/search?${parameters}`, { method: "POST", body: photo, headers: { "Content-Type": type }, signal });
}

export function similar(itemId, parameters, signal) {
  return json(`/items/${encodeURIComponent(itemId)}/similar?${parameters}`, { signal });
}

export function newest(parameters, signal) {
  return json(`/items?${parameters}`, { signal });
}

// The photo of a place, to search with.
export function photoOf({ photo, search }, signal) {
  const path = photo ? `/items/${encodeURIComponent(photo)}/photo` : `/searches/${encodeURIComponent(search)}/photo`;
  return answered(path, { signal }, (response) => response.blob(), search ? "photoNotKept" : "notFound");
}

const json = (path, options) => answered(path, options, (response) => response.json());

async function answered(path, options, read, whenMissing = "notFound") {
  let response;
  try {
    response = await fetch(path, options);
    if (response.ok) return await read(response);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("offline", { againAfter: 0 });
  }
  throw await refusalOf(response, whenMissing);
}

async function refusalOf(response, whenMissing) {
  const { field } = await response.json().catch(() => ({}));
  const seconds = Math.max(1, Number(response.headers.get("Retry-After")) || 1);
  switch (response.status) {
    case 404:
      return new Refusal(whenMissing);
    case 408:
      return new Refusal("tooSlow", { againAfter: 0 });
    case 413:
      return new Refusal("tooLarge");
    case 422:
      return new Refusal(NOT_VALID[field] ?? "notValid");
    case 429:
      return new Refusal("busy", { values: [seconds], againAfter: seconds });
    case 503:
      return new Refusal("away", { againAfter: seconds });
    default:
      return new Refusal("failed", { values: [response.status], againAfter: 0 });
  }
}
