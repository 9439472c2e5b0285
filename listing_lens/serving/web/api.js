// The service's operations, and its refusals in words.

import { say } from "./words.js";

export class Refusal extends Error {}

const TYPES = new Set(["image/jpeg", "image/png", "image/webp", "image/heic"]);

export function search(photo, parameters) {
  const type = TYPES.has(photo.type) ? photo.type : "image/jpeg";
  return ask(`/search?${parameters}`, { method: "POST", body: photo, headers: { "Content-Type": type } });
}

export function similar(itemId, parameters) {
  return ask(`/items/${encodeURIComponent(itemId)}/similar?${parameters}`);
}

export function newest(k) {
  return ask(`/items?k=${k}`);
}

// A photo as a file, to search with: an item's, or that of an earlier search.
export async function photoOf(path) {
  return (await answered(path)).blob();
}

export const itemPhoto = (itemId) => `/items/${encodeURIComponent(itemId)}/photo`;
export const searchPhoto = (searchId) => `/searches/${encodeURIComponent(searchId)}/photo`;

async function ask(path, options) {
  return (await answered(path, options)).json();
}

async function answered(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(say("offline"));
  }
  if (response.ok) return response;
  throw new Refusal(await inWords(response));
}

async function inWords(response) {
  const problem = await response.json().catch(() => ({}));
  switch (response.status) {
    case 404: return say("notFound");
    case 413: return say("tooLarge");
    case 422: return problem.field === "photo" ? say("notPhoto") : say("failed", problem.detail);
    case 429: return say("busy", response.headers.get("Retry-After") ?? 1);
    case 503: return say("away");
    default: return say("failed", problem.detail ?? response.status);
  }
}
