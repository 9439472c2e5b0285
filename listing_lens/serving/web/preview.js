// The photo that is searched with.

const photo = document.getElementById("photo");
const image = document.getElementById("preview");
const frame = document.getElementById("frame");
const crop = document.getElementById("crop");
const noPreview = document.getElementById("no-preview");
let shown = null;

export function show(file) {
  photo.hidden = !file;
  if (file === shown) return;
  if (shown) URL.revokeObjectURL(image.src);
  shown = file;
  if (file) image.src = URL.createObjectURL(file);
}

// Not every browser can show HEIC; the service can search with it all the same.
const onShown = (can) => () => {
  frame.hidden = crop.hidden = !can;
  noPreview.hidden = can;
};
image.addEventListener("load", onShown(true));
image.addEventListener("error", onShown(false));
