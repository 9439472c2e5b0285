// What the page's addresses stand for.
//
// A place is an item's page (`item`), a search with words (`text`), with the photo of an item (`photo`) or of a search that was
// kept (`search`), or with words and a photo; or else the newest listings. A search may be with a part of its photo (`crop`);
// `filters` are as the service takes them.

export const FILTERS = ["price_min", "price_max", "status"];
// As many characters as the service takes.
const LONGEST_TEXT = 1000;
const SHARES = /^(0|1|0?\.\d{1,6})$/;

export function read(query) {
  const parameters = new URLSearchParams(query);
  const filters = new URLSearchParams();
  for (const name of FILTERS) if (parameters.get(name)) filters.set(name, parameters.get(name));
  for (const level of parameters.getAll("category")) filters.append("category", level);
  const [item, photo, search] = ["item", "photo", "search"].map((name) => parameters.get(name));
  const text = item ? "" : (parameters.get("text") ?? "").trim().slice(0, LONGEST_TEXT);
  return { item, photo, search, text, crop: partOf(parameters.get("crop")), filters };
}

export function write({ item, photo, search, text, crop, filters }) {
  const parameters = new URLSearchParams(filters);
  for (const [name, value] of Object.entries({ item, photo, search, text, crop })) if (value) parameters.set(name, value);
  return `/?${parameters}`.replace(/\?$/, "");
}

// Left, top, right and bottom as shares of the photo; null for all of it, and for what is no part of a photo.
function partOf(text) {
  const sides = text?.split(",") ?? [];
  if (sides.length !== 4 || !sides.every((side) => SHARES.test(side))) return null;
  const [left, top, right, bottom] = sides.map(Number);
  return left < right && top < bottom ? [left, top, right, bottom] : null;
}
